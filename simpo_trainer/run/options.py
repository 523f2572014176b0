"""Environment variables by which a process tells those that it starts of itself."""

# Its value: the launcher's options, as `simpo train` takes them.
LAUNCHER_OPTIONS = "SIMPO_LAUNCHER_OPTIONS"
# Set by `simpo iterate`, for the processes of its stages.
STAGE = "SIMPO_STAGE"
