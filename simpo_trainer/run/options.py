"""What a launched process is told about how it was launched."""

# In its environment: the launcher's options, as `simpo train` takes them.
LAUNCHER_OPTIONS = "SIMPO_LAUNCHER_OPTIONS"
