"""Two real processes that train together over gloo, started once for all tests."""

import multiprocessing
import os
import socket
import sys
import traceback

TIMEOUT = 120  # seconds that an answer may take


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class Pool:
    """pool(function, *arguments, **options) calls a function of a module in every process; their answers in order."""

    def __init__(self, size=2):
        context = multiprocessing.get_context("spawn")
        port = free_port()
        pairs = [context.Pipe() for _ in range(size)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=serve, args=(theirs, rank, size, port, sys.path))
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()

    def __call__(self, function, *arguments, **options):
        for pipe in self.pipes:
            pipe.send((function, arguments, options))
        answers = [pipe.recv() if pipe.poll(TIMEOUT) else (None, "no answer") for pipe in self.pipes]
        failures = [failure for _, failure in answers if failure]
        assert not failures, "\n".join(failures)
        return [answer for answer, _ in answers]

    def close(self):
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(10)
            process.kill()


def serve(pipe, rank, size, port, path):
    """Answer calls until None comes; the environment is that of torchrun."""
    sys.path[:] = path
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "tests", "OMP_NUM_THREADS": "1"}
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    import torch.distributed as dist

    dist.init_process_group("gloo")
    while (call := pipe.recv()) is not None:
        function, arguments, options = call
        try:
            pipe.send((function(*arguments, **options), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
    dist.destroy_process_group()
