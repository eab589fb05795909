"""Images per second of a server, beside those of offline batches in one process; and ONNX beside torch.

    python -m benchmarks.serving --json benchmarks/results/serving.json

CDC with four templates, not trained, on drawn photos of 640 x 480 pixels in JPEG. Of torch and of ONNX:
`offline` is `predict` of all photos, in batches of 32. Then `promptprism serve` answers clients that each
send one photo after the other, by keep-alive connections; the clients share the machine's cores with it.
Each is measured in turn, in several rounds, and the median counts. `cold_start` is the whole command for
one photo, from its start to its answer. `of_offline` compares images per second; `cpu_of_offline` the
processor's seconds of the server alone, which other work on the machine hardly changes (Linux only).
"""

import http.client
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.evaluation import write_photos
from benchmarks.measure import machine
from promptprism import PromptPrism, load_model
from promptprism.adapter import read_card
from promptprism.cli.output import document, to_json
from promptprism.export import export_onnx
from promptprism.files import write_text
from promptprism.runtime import Runtime

CLIENTS = (1, 4, 16)
_PHOTOS = 128
_TURNS, _SECONDS = 6, 3.0  # of each client, at least
_BOUNDARY = "photo"


def body(photo: Path) -> bytes:
    """A request for one photo."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{photo.name}"\r\n\r\n'
    return head.encode() + photo.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()


@contextmanager
def server(folder: Path) -> Iterator[tuple[tuple[str, int], int]]:
    """`promptprism serve`: where it answers, and its process."""
    command = [sys.executable, "-m", "promptprism", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            while (place := re.search(r"http://([\d.]+):(\d+)", said)) is None:
                said = process.stderr.readline()
                if not said:
                    raise RuntimeError("the server did not start")
            yield (place[1], int(place[2])), process.pid
        finally:
            process.terminate()


def load(place: tuple[str, int], bodies: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """What so many clients get: images per second, and milliseconds to an answer."""
    end = time.perf_counter() + seconds

    def client(first: int) -> list[float]:
        connection, times, turn = http.client.HTTPConnection(*place, timeout=60), [], first
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        while (began := time.perf_counter()) < end:
            connection.request("POST", "/predict", bodies[turn % len(bodies)], headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"the server answered {answer.status}")
            times.append(time.perf_counter() - began)
            turn += clients
        connection.close()
        return times

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = sorted(one for part in pool.map(client, range(clients)) for one in part)
    took = time.perf_counter() - began
    p50, p99 = (1000 * times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.99))
    return {"images": len(times), "images_per_second": len(times) / took, "p50_ms": p50, "p99_ms": p99}


def cpu_seconds_of(pid: int) -> float | None:
    """The processor's seconds that a process has taken so far; None where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seconds_of(work: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(
    folder: Path, predict: Callable[[list[Path]], Any], command: list[str], photos: list[Path], rounds: int
) -> dict[str, Any]:
    """All figures of one kind of model."""
    bodies = [body(photo) for photo in photos]
    predict(photos[:32])
    offline: list[float] = []
    offline_cpu: list[float] = []
    loads: dict[int, list[dict[str, float]]] = {clients: [] for clients in CLIENTS}
    with server(folder) as (place, pid):
        load(place, bodies, 4, _SECONDS / 3)
        for _ in range(rounds):
            before = time.process_time()
            offline.append(len(photos) / seconds_of(lambda: predict(photos)))
            offline_cpu.append((time.process_time() - before) / len(photos))
            for clients, found in loads.items():
                started = cpu_seconds_of(pid)
                # Each client has several turns, on slow machines too: the first and the last are of no use.
                row = load(place, bodies, clients, max(_SECONDS, _TURNS * clients / offline[-1]))
                images, ended = row.pop("images"), cpu_seconds_of(pid)
                if started is not None and ended is not None:
                    row["cpu_of_offline"] = offline_cpu[-1] * images / (ended - started)
                found.append(row)
    before = _children()
    cold = [
        seconds_of(lambda: subprocess.run([*command, str(photos[0])], check=True, capture_output=True))
        for _ in range(rounds)
    ]
    base = statistics.median(offline)
    served = []
    for clients, found in loads.items():
        row = {name: statistics.median(one[name] for one in found) for name in found[0]}
        served.append({"clients": clients, **row, "of_offline": row["images_per_second"] / base})
    return {
        "offline_images_per_second": base,
        "offline_cpu_ms": 1000 * statistics.median(offline_cpu),
        "cold_start_seconds": statistics.median(cold),
        "cold_start_cpu_seconds": (_children() - before) / rounds,
        "served": served,
    }


def _children() -> float:
    """The processor's seconds of processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(found: dict[str, Any]) -> str:
    """Markdown of what was served, beside offline batches."""
    lines = [
        "| model | clients | photos/s | of offline | of offline, in CPU time | p50, ms | p99, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in ("torch", "onnx"):
        for row in found[kind]["served"]:
            shares = f"{row['of_offline']:.2f} | {row['cpu_of_offline']:.2f}"
            times = f"{row['p50_ms']:.0f} | {row['p99_ms']:.0f}"
            lines.append(
                f"| {kind} | {row['clients']} | {row['images_per_second']:.0f} | {shares} | {times} |"
            )
    return "\n".join(lines)


def main(
    json_file: Annotated[str, typer.Option("--json", help="A file, or - for standard output.")] = "-",
    backbone: Annotated[str, typer.Option(help="mini or photo.")] = "photo",
    rounds: Annotated[int, typer.Option(min=1, help="Of which the median counts.")] = 3,
) -> None:
    """Measure a server beside offline batches, ONNX beside torch."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        photos = write_photos(place, _PHOTOS, (640, 480))
        adapter, exported = place / "adapter", place / "onnx"
        names = ["daisy", "iris", "rose", "tulip"]
        labels = [names[number % 4] for number in range(8)]
        PromptPrism("cdc", backbone, epochs=0).fit(photos[:8], labels).save(adapter)
        plain = load_model(adapter, precision="float32", device="cpu")
        export_onnx(plain.classifier_, exported, read_card(adapter))
        model, runtime = load_model(adapter), Runtime(exported)
        torch_command = [sys.executable, "-m", "promptprism", "predict", str(adapter)]
        onnx_command = [sys.executable, "-m", "promptprism.runtime", str(exported)]
        found = {
            "torch": measure(adapter, model.predict_proba, torch_command, photos, rounds),
            "onnx": measure(exported, runtime.predict, onnx_command, photos, rounds),
        }
    text = to_json(
        document(
            "benchmarks/serving", backbone=backbone, rounds=rounds, photos=_PHOTOS, machine=machine(), **found
        )
    )
    if json_file == "-":
        sys.stdout.write(text)
    else:
        write_text(Path(json_file), text)


if __name__ == "__main__":
    typer.run(main)
