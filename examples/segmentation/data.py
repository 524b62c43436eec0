"""Rooms of boxes: clouds of varying size with a class for each point, generated from a seed."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import ndarray
from numpy.random import Generator
from torch.utils.data import Dataset

CLASSES = ("floor", "wall", "table", "chair", "cabinet", "lamp")
CELL_M = 1.5  # a room is a grid of such cells, each with a piece of furniture or none
WALL_M = 2.2
NOISE_M = 0.005


class Piece(NamedTuple):
    """Something in a room: its class, its boxes ``(N, 6)`` of sizes and centres in metres, its turn and its place."""

    label: int
    boxes: ndarray
    turn: float
    place: ndarray


def table(rng: Generator) -> list[ndarray]:
    """Return a plate on four legs, as high as a desk."""
    width, depth, height = rng.uniform((0.8, 0.6, 0.65), (1.4, 0.9, 0.8))
    return [_box(width, depth, 0.04, 0, 0, height), *_legs(width - 0.1, depth - 0.1, height)]


def chair(rng: Generator) -> list[ndarray]:
    """Return a seat on four legs, with a back."""
    side, height, back = rng.uniform((0.4, 0.42, 0.35), (0.5, 0.5, 0.55))
    seat, rest = _box(side, side, 0.04, 0, 0, height), _box(side, 0.04, back, 0, side / 2, height + back / 2)
    return [seat, rest, *_legs(side - 0.05, side - 0.05, height)]


def cabinet(rng: Generator) -> list[ndarray]:
    """Return one box, between a chest of drawers and a wardrobe."""
    width, depth, height = rng.uniform((0.5, 0.35, 0.7), (1.2, 0.6, 1.9))
    return [_box(width, depth, height, 0, 0, height / 2)]


def lamp(rng: Generator) -> list[ndarray]:
    """Return a shade on a pole."""
    height, shade = rng.uniform((1.2, 0.3), (1.7, 0.45))
    return [_box(0.04, 0.04, height, 0, 0, height / 2), _box(shade, shade, 0.3, 0, 0, height)]


def _box(*sizes_and_center: float) -> ndarray:
    return np.array(sizes_and_center)


def _legs(width: float, depth: float, height: float) -> list[ndarray]:
    corners = [(x, y) for x in (-width / 2, width / 2) for y in (-depth / 2, depth / 2)]
    return [_box(0.05, 0.05, height, x, y, height / 2) for x, y in corners]


def furnish(filled: float, rng: Generator) -> list[Piece]:
    """Return floor, two walls and the furniture of a room in which a share of the cells is filled."""
    rows, columns = (int(size) for size in rng.integers(2, 4, 2, endpoint=True))
    x, y = rows * CELL_M, columns * CELL_M
    walls = [_box(0.02, y, WALL_M, 0, y / 2, WALL_M / 2), _box(x, 0.02, WALL_M, x / 2, 0, WALL_M / 2)]
    floor = Piece(0, np.stack([_box(x, y, 0.02, x / 2, y / 2, -0.01)]), 0.0, np.zeros(2))
    pieces = [floor, Piece(1, np.stack(walls), 0.0, np.zeros(2))]
    for cell in rng.permutation(rows * columns)[: max(1, round(filled * rows * columns))]:
        label = int(rng.integers(2, len(CLASSES)))
        boxes = np.stack((table, chair, cabinet, lamp)[label - 2](rng))
        place = (np.array(divmod(int(cell), columns)) + rng.uniform(0.4, 0.6, 2)) * CELL_M
        pieces.append(Piece(label, boxes, rng.uniform(0, 2 * np.pi), place))
    return pieces


def sample_piece(piece: Piece, num_points: int, rng: Generator) -> ndarray:
    """Return points ``(num_points, 3)`` on the surfaces of a piece, evenly over their area."""
    sizes, centers = piece.boxes[:, :3], piece.boxes[:, 3:]
    faces = _face_areas(sizes)
    box, axis = np.divmod(rng.choice(faces.size, num_points, p=faces.ravel() / faces.sum()), 3)
    points = rng.uniform(-0.5, 0.5, (num_points, 3))
    points[np.arange(num_points), axis] = rng.choice([-0.5, 0.5], num_points)  # onto one of the two faces
    points = points * sizes[box] + centers[box]
    points[:, :2] = points[:, :2] @ _turn(piece.turn) + piece.place
    return points


def _face_areas(sizes: ndarray) -> ndarray:
    """Return the areas ``(N, 3)`` of the faces of boxes that look along x, y and z."""
    return np.prod(sizes, axis=1, keepdims=True) / sizes


def _turn(angle: float) -> ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def make_room(num_points: int, filled: float, rng: Generator) -> dict[str, torch.Tensor]:
    """Make a room, scanned more densely where furniture is.

    Returns:
        ``points (num_points, 3)`` in metres, in random order, z upward from the floor; ``labels (num_points,)``.
    """
    pieces = furnish(filled, rng)
    shares = np.array([_face_areas(piece.boxes[:, :3]).sum() * (3 if piece.label > 1 else 1) for piece in pieces])
    counts = rng.multinomial(num_points, shares / shares.sum())
    points = np.concatenate([sample_piece(piece, n, rng) for piece, n in zip(pieces, counts, strict=True)])
    points += rng.normal(scale=NOISE_M, size=points.shape)
    order = rng.permutation(num_points)
    labels = np.repeat([piece.label for piece in pieces], counts)
    return {"points": torch.tensor(points[order], dtype=torch.float32), "labels": torch.tensor(labels[order])}


class RoomDataset(Dataset):
    """Rooms of 500 to 4,000 points. Each index is always the same room; it is turned at random when training.

    Args:
        num_rooms: length of the data set.
        seed: seed of the rooms.
        filled: share of the floor on which furniture stands.
        augment: turn and stretch rooms at random.
    """

    def __init__(self, num_rooms: int, seed: int, filled: float = 0.5, augment: bool = False) -> None:
        self._num_rooms = num_rooms
        self._seed = seed
        self._filled = filled
        self._augment = augment

    def __len__(self) -> int:
        return self._num_rooms

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self._seed, index))
        room = make_room(int(rng.integers(500, 4000, endpoint=True)), self._filled, rng)
        room["points"][:, :2] -= room["points"][:, :2].mean(dim=0)
        return augmented(room) if self._augment else room


def augmented(room: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a room turned about the vertical and stretched by up to 10 % along each axis."""
    turn = torch.tensor(_turn(2 * np.pi * float(torch.rand(()))), dtype=torch.float32)
    x_y, z = room["points"].split([2, 1], dim=1)
    return room | {"points": torch.cat([x_y @ turn, z], dim=1) * torch.empty(3).uniform_(0.9, 1.1)}


def pack(rooms: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Put rooms one behind the other: ``points (sum, 3)``, ``labels (sum,)``, and ``lengths``, a list on the host."""
    packed: dict[str, Any] = {key: torch.cat([room[key] for room in rooms]) for key in ("points", "labels")}
    return packed | {"lengths": [len(room["points"]) for room in rooms]}
