"""Records of samples, kept as JSON has them."""

import json
import math

import numpy as np
import pytest

from vision3d_engine.core.errors import ResultError
from vision3d_engine.results.plain_records import read, written


def test_records_of_lists_tuples_dicts_numbers_and_texts_come_back_as_they_were():
    records = [(1, 0.1), [("a", None)], {"tuple": (True,), "lost": {}, "": []}, 2**70, -math.inf, "\udcff"]
    found = read(json.loads(json.dumps(written(records))))
    assert found == records
    assert [type(each) for each in found] == [type(each) for each in records]
    assert math.isnan(read(json.loads(json.dumps(written(math.nan)))))


@pytest.mark.parametrize("record", [np.float32(1), np.float64(1), {1: 2}, {3}, [(object(),)]])
def test_other_records_are_refused_only_where_they_are_wanted_again(record):
    kept = json.loads(json.dumps(written(record)))
    with pytest.raises(ResultError, match=r"add_records got .* and only numbers, .*\.item\(\).*--overwrite"):
        read(kept)
