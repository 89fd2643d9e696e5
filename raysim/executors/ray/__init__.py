"""Ray: client actors, the driver actor, and how they are started."""
