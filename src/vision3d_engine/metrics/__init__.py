"""Numbers of a pass: running means that stay on the device, the step clock; meters, boards and timers for users."""
