"""Frames that are chosen: for eight bits, and for float16."""
