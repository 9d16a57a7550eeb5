"""CloudEvents 1.0: the event, its attributes, its HTTP bindings, and strict JSON. The door is `event.py`."""
