"""A script whose messages and checkpoint bring escape sequences along; ``plain_messages_script.py FOLDER FILE``."""

import sys

from tests.toys import ToyEpochTrainer, settings

trainer = ToyEpochTrainer(settings(sys.argv[1]))
trainer.log("\033[1;31mred\033[0m words", level="WARNING")
trainer.load(sys.argv[2])
