"""The engines that a model file can name. `darkroom_worker.engines.registry.make_engine` imports the one that is asked
for.
"""
