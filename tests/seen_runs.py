"""Runs that have left something to look at, and the text of pages as a parser of HTML reads it."""

import json
from html.parser import HTMLParser

import torch
from torch import nn

from vision3d_engine import SingleTester


def a_turn(index):
    """A transform by a quarter of a circle about z, and along x by the index."""
    return torch.tensor([[0.0, -1, 0, index], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


class PairTester(SingleTester):
    """Five pairs of clouds; the pose of pair i is wrong by i; everything that can be seen of a pair is saved."""

    worst_by = ("RTE", "largest")

    def __init__(self, folder, **trainer):
        weights = folder.parent / "weights.pth"
        torch.save({"model": nn.Linear(1, 1).state_dict()}, weights)
        super().__init__({"exp": {"name": "pairs", "output_dir": str(folder)}, "trainer": trainer}, str(weights))
        self.register_model(nn.Linear(1, 1))
        generator = torch.Generator().manual_seed(0)
        clouds = [torch.rand(400, 3, generator=generator) for _ in range(5)]
        self.register_loader([{"source": cloud, "name": f"room/{i}", "index": i} for i, cloud in enumerate(clouds)])

    def test_step(self, iteration, data_dict):
        return {"estimated": a_turn(data_dict["index"])}

    def eval_step(self, iteration, data_dict, output_dict):
        source, truth, rows = data_dict["source"], a_turn(0), torch.arange(0, 400, 10)
        shown = {"source": source, "target": source @ truth[:3, :3].T, "truth": truth, **output_dict}
        self.save_result("pair", shown | {"correspondences": torch.stack([rows, rows.flip(0)], 1)})
        self.save_result("marks", {"is_inlier": rows % 20 == 0})
        return {"RTE": float(data_dict["index"]), "time": 1.5}


def run_pairs(folder, name="", **trainer):
    tester = type("Named", (PairTester,), {"test_name": name}) if name else PairTester
    tester(folder, **trainer).run()
    return folder


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Page(HTMLParser):
    """The rows of tables by the id around them, texts by tag, attributes of all elements; fails on a wrong nest."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.elements, self.rows = [], {}, [], {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs).get("id")))
        if tag == "tr":
            self.rows.setdefault(self.inside, []).append([])
        if tag in ("td", "th"):
            self.rows[self.inside][-1].append("")

    @property
    def inside(self):
        return next((name for _, name in reversed(self.open) if name), "")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for tag in {tag for tag, _ in self.open}:
            self.texts.setdefault(tag, []).append(data)
        if {"td", "th"} & {tag for tag, _ in self.open}:
            self.rows[self.inside][-1][-1] += data

    def attributes(self, tag, name):
        return [attributes[name] for found, attributes in self.elements if found == tag and name in attributes]
