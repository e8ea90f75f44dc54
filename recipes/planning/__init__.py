"""Before a run.

plan.py         time, memory and dollars; plan_text.py, purchase_text.py, plan_json.py: as text, as an order, as JSON
budget.py       whether it may start
listing.py      the table of all recipes
"""
