"""Before a run: what it will take (plan, plan_text, purchase_text, plan_json), may it start (budget), which are there
(listing).
"""
