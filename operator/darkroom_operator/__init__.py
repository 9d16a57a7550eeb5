"""The operator: worker pools with as many workers as their jobs need, and never one less under a busy one."""
