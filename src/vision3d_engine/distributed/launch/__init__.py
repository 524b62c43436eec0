"""Who has started this process, its device, and the process group that it joins."""
