"""Numbers of a pass on the device, the step clock; meters, boards, timers and whole-set metrics for users."""
