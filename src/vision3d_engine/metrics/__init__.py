"""Numbers of a pass: moments that stay on the device, meters and boards for users, timers."""
