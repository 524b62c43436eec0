"""Files of samples whose names clash."""

import pytest
import torch

from vision3d_engine.core.errors import ResultError
from vision3d_engine.results import sample_files
from vision3d_engine.results.folder import ResultsFolder
from vision3d_engine.results.sample_writer import SampleFiles
from vision3d_engine.results.writer import OrderedWriter


def test_a_file_that_another_process_is_writing_is_neither_replaced_nor_left_half(tmp_path, monkeypatch):
    folder = ResultsFolder(tmp_path)
    writers = [OrderedWriter(folder.path) for _ in range(2)]
    first, second = (SampleFiles(folder, writer) for writer in writers)
    write = sample_files.write_npz

    def slow(path, arrays):
        monkeypatch.setitem(sample_files.FORMATS, "npz", write)
        second.save("kind", "a", {"x": torch.ones(1)}, "npz")
        with pytest.raises(ResultError, match=r"'kind'.* for the sample 'a': .* Two samples have this name"):
            writers[1].flush()
        write(path, arrays)

    monkeypatch.setitem(sample_files.FORMATS, "npz", slow)
    first.save("kind", "a", {"x": torch.zeros(1)}, "npz")
    writers[0].flush()
    assert [path.name for path in (folder.path / "kind").iterdir()] == ["a.npz"]
