"""Talking to a trained model: loading.py puts it together, generate.py writes text, chat.py holds a conversation."""
