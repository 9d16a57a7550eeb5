"""The engines that a model file can name. `darkroom_worker.engine.make_engine` imports the one that is asked for."""
