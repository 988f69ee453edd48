"""Two processes on the CPU: what they learn and what they measure is what one process does with the same images.

Run as a program by a launcher, this file is the processes: `cases` does many small comparisons behind one start.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys

import torch
from models import FPN_WIDTH, NARROW, narrow_model, scene
from torch import nn

from maskrcnn_bench.data.datasets.toy import generate
from maskrcnn_bench.engine.inference import inference
from maskrcnn_bench.engine.trainer import Step
from maskrcnn_bench.structures.bounding_box import BoxList, Detections
from maskrcnn_bench.structures.image_list import ImageList
from maskrcnn_bench.utils import comm

SMALL = ("MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN", 60, "MODEL.RESNETS.NORM", "GN", "MODEL.GROUP_NORM.NUM_GROUPS", 4)
KEYPOINTS = ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_LAYERS", "(8,)", "MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES", 3)
KEYPOINTS += ("MODEL.ROI_KEYPOINT_HEAD.RESOLUTION", 56)
SHARED = "MODEL.ROI_KEYPOINT_HEAD.SHARE_BOX_FEATURE_EXTRACTOR"
CASES = {
    "proposals of the batch": (("MODEL.RPN.FPN_POST_NMS_PER_BATCH", True), ((3, 2), (1, 4))),
    "proposals of each image": (("MODEL.RPN.FPN_POST_NMS_PER_BATCH", False), ((3, 2), (1, 4))),
    "one shard without objects": ((*KEYPOINTS, SHARED, False), ((3, 2), (0, 0))),
}


def shards(counts, iteration):
    """A batch for each process."""
    batches = []
    for rank, number in enumerate(counts):
        images, targets = scene(sizes=((64, 64), (64, 96)), counts=number, seed=10 * iteration + rank)
        batches.append((ImageList(images.tensors, images.image_sizes, images.keys + 1000 * iteration + 100 * rank), targets, (rank,)))
    return batches


def learn(name, alone):
    """The weights after two steps: with a batch a process, or in one process with one batch after the other."""
    opts, counts = CASES[name]
    model = narrow_model("mask_fpn", *SMALL, *opts)
    wrapped = model if alone else nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    step = Step(wrapped, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=True), "cpu", accumulate=2 if alone else 1)
    for iteration in range(2):
        batches = shards(counts, iteration)
        step(batches if alone else [batches[comm.get_rank()]], iteration + 1)
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal_learning(name):
    together = learn(name, alone=False)
    others = comm.all_gather(together)
    for key, value in together.items():
        assert all(torch.equal(value, other[key]) for other in others), f"{name}: {key} differs between processes"
    if comm.is_main_process():
        for key, value in learn(name, alone=True).items():
            torch.testing.assert_close(together[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{name}: {key}: {m}")
    comm.synchronize(name)


class Squares:
    """Images with one known object each."""

    class_names = ("__background__", "thing")
    categories = {1: "thing"}

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def get_img_info(self, i):
        return {"width": 40 + 10 * i, "height": 50, "id": 7 * i + 1, "file_name": f"{i}.jpg"}

    def get_groundtruth(self, i):
        target = BoxList([[4.0 + i, 5.0, 20.0 + i, 30.0]], (40 + 10 * i, 50), pixel=0)
        target.add_field("labels", torch.ones(1, dtype=torch.int64))
        return target


class Share:
    """This process's images, one a batch; the pixels say which one it is."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        from maskrcnn_bench.data.samplers import GroupedBatchSampler, ShardedBatchSampler

        sampler = GroupedBatchSampler([0] * len(self.dataset), 1, shuffle=False)
        for batch in ShardedBatchSampler(sampler, comm.get_rank(), comm.get_world_size()):
            (index,) = (sample.index for sample in batch)
            pixels = torch.full((1, 3, 50, 40 + 10 * index), float(index))
            yield ImageList(pixels, [(50, 40 + 10 * index)]), None, (index,)


class Knows(nn.Module):
    """Finds the object of each image; the later the image, the surer."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        index = int(images.tensors.flatten()[0])
        self.seen.append(index)
        boxes = torch.tensor([[[4.0 + index, 5.0, 20.0 + index, 30.0]]])
        fields = {"scores": torch.full((1, 1), 0.5 + 0.05 * index), "labels": torch.ones(1, 1, dtype=torch.int64)}
        return Detections(boxes, torch.ones(1, 1, dtype=torch.bool), images.sizes, fields, pixel=0)


def each_image_once(count):
    model = Knows()
    results = inference(model, Share(Squares(count)), "squares", device="cpu")
    assert sorted(sum(comm.all_gather(model.seen), [])) == list(range(count))
    assert results["images"] == count and abs(results["bbox"]["AP"] - 1) < 1e-9, results


def cases():
    comm.start(torch.device("cpu"))
    for name in CASES:
        equal_learning(name)
    for count in (1, 2, 3, 5):
        with contextlib.redirect_stdout(io.StringIO()):
            each_image_once(count)
    comm.stop()
    print("all cases hold", flush=True)


@contextlib.contextmanager
def started(repository, *command, **env):
    """A program in processes of its own, which do not outlive the `with`."""
    environment = {k: v for k, v in os.environ.items() if k != "LOCAL_RANK"} | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)} | env
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, *command], cwd=repository, env=environment, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_two_processes_learn_and_measure_as_one(repository):
    with started(repository, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__) as program:
        output = program.communicate(timeout=150)[0]
    assert program.returncode == 0, output
    assert output.count("all cases hold") == 2


DYING = """
import os, signal, sys
from maskrcnn_bench.engine.launch import train_main
from maskrcnn_bench.engine.trainer import Step

step = Step.__call__

def dying(self, parts, iteration):
    if iteration == 4 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, parts, iteration)

Step.__call__ = dying
sys.exit(train_main())
"""


def test_processes_that_are_started_once_more_go_on_from_the_last_checkpoint(repository, tmp_path):
    generate(tmp_path / "toy", 6, 2, 64)
    (tmp_path / "dying.py").write_text(DYING)
    config = [
        "--config-file",
        "configs/e2e_faster_rcnn_R_50_FPN_1x.yaml",
        "--data",
        str(tmp_path / "toy"),
        "--output",
        str(tmp_path / "out"),
    ]
    classes = ("MODEL.ROI_BOX_HEAD.NUM_CLASSES", 7)
    torch.save({"format": "maskrcnn_bench", "model": narrow_model("faster_fpn", *SMALL, *classes).state_dict()}, tmp_path / "w.pth")
    narrow = [str(word) for word in (*NARROW, *FPN_WIDTH, *SMALL, *classes)]
    given = [
        "SOLVER.IMS_PER_BATCH=2",
        "SOLVER.MAX_ITER=6",
        "SOLVER.CHECKPOINT_PERIOD=1",
        "SOLVER.WARMUP_ITERS=1",
        "INPUT.MIN_SIZE_TRAIN=(64,)",
    ]
    # --weights begins anew, but not when a launcher repairs what died.
    words = [*config, "--skip-test", "--weights", str(tmp_path / "w.pth"), "DATALOADER.NUM_WORKERS=0", *narrow, *given]
    launcher = ["-m", "torch.distributed.launch", "--nproc_per_node=2", "--max-restarts=1", "--master-port=0", "--rdzv-backend=c10d"]
    with started(repository, *launcher, str(tmp_path / "dying.py"), *words) as program:
        output = program.communicate(timeout=150)[0]
    assert program.returncode == 0, output
    assert "rank 0 lost rank 1, which died or did not come for 1800 s, during the training, in iteration 4" in output
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "model_0000003.pth after iteration 3" in log
    assert torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["iteration"] == 6


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases()
