"""What a script may do with the handle of a metric, where, and what it is told elsewhere."""

import pytest
import torch
import torchmetrics

from tests.loop.test_pass_metrics import Plain, Trainer, label_of, mean_iou, take_in, trained
from tests.toys import Rows, ToyEpochTrainer, ToySingleTester, rows_loader, save_weights, settings
from vision3d_engine import ConfusionMatrix, RegistrationError, ResultError

LOADERS = rows_loader(8), rows_loader(5)


def log_of(folder):
    return "".join(each.read_text() for each in (folder / "logs").iterdir())


# ------------------------------------------------------------------------------------------- when a pass has ended


def test_hooks_have_the_metric_of_the_pass_that_has_ended(tmp_path):
    class Drawing(Trainer):
        def after_train_epoch(self, epoch, summary_dict):
            self.drawn = [(self.seg.merged().matrix.sum(), self.seg.compute()["mIoU"])]

        def after_val_epoch(self, epoch, summary_dict):
            self.drawn.append((self.seg.merged().matrix.sum(), self.seg.compute()["mIoU"]))

    trainer = Drawing(settings(tmp_path, max_epoch=2), rows_loader(7), rows_loader(5))
    with pytest.raises(RegistrationError, match=r"merged\(\) .* finds no pass that has ended"):
        trainer.seg.merged()
    assert trained(trainer).drawn == [(7, mean_iou(Rows(7))), (5, mean_iou(Rows(5)))]
    with pytest.raises(RegistrationError, match="over a validation set 'hard'"):
        trainer.seg.merged("hard")


def test_after_a_validation_in_mid_epoch_the_handle_is_the_validations_and_then_trainings(tmp_path):
    class Asking(Trainer):
        asked = ()

        def after_val_epoch(self, epoch, summary_dict):
            self.asked += (self.seg.compute()["mIoU"],)

        after_train_epoch = after_val_epoch

    trainer = trained(Asking(settings(tmp_path, val_every="2 iterations"), *LOADERS))
    assert trainer.asked == (mean_iou(Rows(5)), mean_iou(Rows(8)), mean_iou(Rows(5)))


def test_a_tester_has_it_after_its_test(tmp_path):
    class Tester(ToySingleTester):
        def eval_step(self, iteration, data_dict, output_dict):
            take_in(self.seg, {"x": data_dict["x"].view(-1, 3), "y": data_dict["y"].view(-1)})
            return super().eval_step(iteration, data_dict, output_dict)

        def after_test_epoch(self, summary_dict):
            self.found = self.seg.compute()["mIoU"]

    save_weights(tmp_path)
    tester = Tester(settings(tmp_path), rows_loader(7, 2))
    tester.seg = tester.register_metric("seg", ConfusionMatrix(3))
    assert trained(tester).found == mean_iou(Rows(7))


MOMENTS = ["before_train_epoch", "before_val_epoch", "before_val_step", "after_val_step", "after_train_step"]


@pytest.mark.parametrize("call", ["merged", "compute"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_before_the_pass_at_hand_has_ended_no_other_ones_numbers_are_given(moment, call, tmp_path):
    trainer = Trainer(settings(tmp_path, max_epoch=2), *LOADERS)
    setattr(trainer, moment, lambda *_: getattr(trainer.seg, call)())
    with pytest.raises(RegistrationError, match=rf"^{call}\(\) of the metric 'seg' .* call it in after_train_epoch"):
        trainer.run()


@pytest.mark.parametrize("moment", ["before_train_epoch", "before_val_epoch", "after_val_epoch"])
def test_an_update_outside_of_steps_is_refused_and_a_reset_there_does_no_harm(moment, tmp_path):
    trainer = Trainer(settings(tmp_path / "reset"), *LOADERS)
    setattr(trainer, moment, lambda *_: trainer.seg.reset())
    assert trained(trainer).train_summaries[0]["seg/mIoU"] == mean_iou(Rows(8))
    trainer = Trainer(settings(tmp_path / "update"), *LOADERS)
    setattr(trainer, moment, lambda *_: trainer.seg.update(torch.eye(3), torch.tensor([0, 1, 2])))
    with pytest.raises(
        RegistrationError, match=r"update\(\) of the metric 'seg' outside of a pass would count nowhere"
    ):
        trainer.run()


def test_a_reset_in_a_step_and_a_call_are_refused(tmp_path):
    trainer = Trainer(settings(tmp_path), *LOADERS)
    trainer.before_val_step = lambda *_: trainer.seg.reset()
    with pytest.raises(RegistrationError, match=r"reset\(\) of the metric 'seg' in the midst of a pass"):
        trainer.run()
    with pytest.raises(RegistrationError, match=r"'seg' is called; call its update\(...\) in a step"):
        trainer.seg(torch.eye(3), torch.tensor([0, 1, 2]))


# ------------------------------------------------------------------------------------------- own loops


def test_in_a_loop_of_the_scripts_own_the_handle_is_what_it_has_updated_since_its_reset(tmp_path):
    class Own(Trainer):
        found = ()

        def val_epoch(self):
            self.seg.reset()
            for batch in self.val_loader:
                take_in(self.seg, batch)
            self.found += (self.seg.compute()["mIoU"], self.seg.merged().matrix.sum())

    trainer = trained(Own(settings(tmp_path, max_epoch=2), *LOADERS))
    assert trainer.found == (mean_iou(Rows(5)), 5) * 2
    assert trainer.train_summaries[0]["seg/mIoU"] == mean_iou(Rows(8))


def test_a_loop_of_the_scripts_own_without_a_reset_is_refused_and_sees_no_pass_of_training(tmp_path):
    class Own(Trainer):
        def val_epoch(self):
            with pytest.raises(RegistrationError, match="finds no pass that has ended"):
                self.seg.merged()
            for batch in self.val_loader:
                take_in(self.seg, batch)

    with pytest.raises(RegistrationError, match=r"in a loop of your own, after reset\(\)"):
        Own(settings(tmp_path), *LOADERS).run()


# ------------------------------------------------------------------------------------------- objects beside handles


@pytest.mark.parametrize(
    "metric", [ConfusionMatrix(3), torchmetrics.JaccardIndex(task="multiclass", num_classes=3)], ids=["own", "foreign"]
)
def test_an_object_that_is_updated_instead_of_its_handle_is_an_error_behind_the_first_pass(metric, tmp_path):
    class Kept(ToyEpochTrainer):
        def val_step(self, epoch, iteration, data_dict):
            take_in(self.iou, data_dict)
            return super().val_step(epoch, iteration, data_dict)

    trainer = Kept(settings(tmp_path), *LOADERS)
    trainer.iou = metric
    trainer.register_metric("seg", trainer.iou)
    with pytest.raises(RegistrationError, match=r"keep what register_metric returns, self.iou = self.register_metric"):
        trainer.run()
    assert "self.iou has a state that is not saved" not in log_of(tmp_path)


def test_a_metric_that_nothing_updates_is_told_once(tmp_path):
    trainer = Trainer(settings(tmp_path, max_epoch=3), *LOADERS)
    trainer.register_metric("poses", ConfusionMatrix(3))
    trainer.run()
    assert log_of(tmp_path).count("nothing has updated the metric 'poses', so it has no number") == 1
    assert "metric 'seg'" not in log_of(tmp_path)


def test_a_key_that_no_metric_has_is_answered_by_those_there_are(tmp_path):
    trainer = Trainer(settings(tmp_path), *LOADERS)
    trainer.save_best_model_on_metric("seg/mIou")
    with pytest.raises(ResultError, match="has no number 'seg/mIou'; did you mean 'seg/mIoU'"):
        trainer.run()


def test_a_class_instead_of_an_object_is_refused_at_once(tmp_path):
    with pytest.raises(
        RegistrationError, match=r"got the class ConfusionMatrix; expected an object .*ConfusionMatrix\("
    ):
        ToyEpochTrainer(settings(tmp_path), *LOADERS).register_metric("seg", ConfusionMatrix)


def test_a_metric_is_not_registered_in_the_midst_of_a_pass_but_between_passes(tmp_path):
    class Late(Trainer):
        def before_train_epoch(self, epoch):
            self.late = self.register_metric("late", Plain())

        def before_train_step(self, epoch, iteration, data_dict):
            with pytest.raises(RegistrationError, match=r"register_metric\('later'\) in the midst of a pass"):
                self.register_metric("later", Plain())
            take_in(self.late, data_dict)

    assert trained(Late(settings(tmp_path), *LOADERS)).late.merged() is not None


# ------------------------------------------------------------------------------------------- too many numbers


@pytest.mark.parametrize("many", [torch.ones(20, 20), [[1.0, 2.0]], torch.ones(257)], ids=["tensor", "lists", "long"])
def test_a_matrix_and_a_long_vector_are_left_out_of_summaries_and_told_once(many, tmp_path):
    class Both(Plain):
        def compute(self):
            return {"matrix": many, "each": torch.tensor([1.0, 2.0]), "single": torch.ones(1, 1)}

    trainer = Trainer(settings(tmp_path, max_epoch=2), *LOADERS, metric=Both())
    summary = trained(trainer).summaries[1]
    assert {key: each for key, each in summary.items() if key[:3] == "seg"} == {
        "seg/each/0": 1,
        "seg/each/1": 2,
        "seg/single": 1,
    }
    assert trainer.seg.compute()["matrix"] is many
    assert log_of(tmp_path).count("seg/matrix of the metric 'seg' has too many numbers for summary") == 1


def test_the_matrix_of_torchmetrics_can_be_drawn_and_is_no_number(tmp_path):
    metric = torchmetrics.ConfusionMatrix(task="multiclass", num_classes=3)
    trainer = trained(Trainer(settings(tmp_path), *LOADERS, metric=metric))
    assert not any(key.startswith("seg") for key in trainer.summaries[0])
    rows, expected = Rows(5), torch.zeros(3, 3)
    for true, predicted in zip(label_of(vars(rows)), rows.x.argmax(1), strict=True):
        expected[true, predicted] += 1
    assert torch.equal(trainer.seg.compute().float(), expected)
