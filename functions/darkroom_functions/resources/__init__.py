"""Resources of the API, a module each with handlers and routes. `darkroom_functions.api` lists the routes of all."""
