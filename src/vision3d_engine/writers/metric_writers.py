import contextlib

from vision3d_engine.loggers.board import EventBoard


class MetricWriters(EventBoard):
    def __init__(self, event_dir, jsonl_file, logger, enabled=True):
        super().__init__(event_dir, jsonl_file, enabled)
        self.speak_through(logger)
        logger.line = self.write_line
    def scalars(self, phase, values, step, **position): self.write(phase, values, step, **position)
    def row(self, phase, values, **position): self.write_row(phase, values, **position)
    def points(self, *a): self.write_points(*a)
    @contextlib.contextmanager
    def running(self):
        try: yield
        finally: self.close()
    def positions(self): return self.ends()
    def cut_back(self, ends, step): self.go_on_from(ends, step)
