"""Composer callbacks of this project."""
