"""From a checkpoint to users: folders for inference engines, an HTTP server for one machine, the hub."""
