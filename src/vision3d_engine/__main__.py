"""``python -m vision3d_engine``: the same as the command ``vision3d-engine``."""

from vision3d_engine.commands import main

main()
