"""A server for one contender, in a process of its own; ended by SIGTERM.

    python benchmarks/_serving_process.py FILE LENGTH THREADS MAX_BATCH MAX_WAIT_MS

It prints its port when it is ready.
"""

import pathlib
import sys

from _timing import pin

if __name__ == "__main__":
    file = pathlib.Path(sys.argv[1])
    length, threads, most = map(int, sys.argv[2:5])
    pin(threads)  # before a library starts its threads

    from _serving_models import OnnxModel

    from jcompress.serving import (
        Batching,
        Servable,
        bind,
        make_app,
        open_program,
        serve,
        sizes_up_to,
        warm_up,
    )

    batching = Batching(
        sizes=sizes_up_to(most),
        max_wait=float(sys.argv[5]) / 1e3,
        max_waiting=16 * most,
    )
    model: Servable
    if file.suffix == ".onnx":
        model = OnnxModel(file, length, threads)
    else:
        model = open_program(file)
    warm_up(model, batching.sizes)
    with bind("127.0.0.1", 0) as place:
        app = make_app(model, batching)
        serve(app, place, lambda: print(place.getsockname()[1], flush=True))
