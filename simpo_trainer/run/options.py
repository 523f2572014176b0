"""The environment variable that gives a launched process the options of its launcher."""

# Its value: the launcher's options, as `simpo train` takes them.
LAUNCHER_OPTIONS = "SIMPO_LAUNCHER_OPTIONS"
