"""mdmkit's tests: a package, so that they can share stand-ins whatever else is installed as `tests`."""
