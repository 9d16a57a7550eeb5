"""Scaling decisions as pure functions, and the simulation that replays them."""
