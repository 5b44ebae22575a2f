"""The victims themselves, without isolation: cv_module gives right answers, and each death is the one that
it claims to be. Every other test that uses them rests on this."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

VICTIMS = Path(__file__).resolve().parent / "victims"


@pytest.fixture(scope="session", autouse=True)
def built():
    subprocess.run([VICTIMS / "build.sh", sys.executable], check=True)


# --- cv_module against NumPy -----------------------------------------------------------------------------


@pytest.fixture
def np():
    return pytest.importorskip("numpy")


@pytest.fixture
def cv():
    """The real module, in this process; gone afterwards, for the tests that isolate it."""
    sys.path.insert(0, str(VICTIMS))
    try:
        yield importlib.import_module("cv_module")
    finally:
        sys.path.remove(str(VICTIMS))
        sys.modules.pop("cv_module", None)


@pytest.fixture
def photo(np):
    """An image with smooth parts, edges and noise."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:60, 0:83]
    planes = [x * 3, y * 4, 255 * ((x - 40) ** 2 + (y - 30) ** 2 < 300)]
    noise = rng.integers(-20, 20, (60, 83, 3))
    return np.clip(np.stack(planes, axis=2) + noise, 0, 255).astype(np.uint8)


def blur_by_numpy(np, image, sigma):
    radius = int(np.ceil(3 * sigma))
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    result = image.astype(float)
    for axis in (0, 1):
        padding = [(radius, radius) if a == axis else (0, 0) for a in range(image.ndim)]
        result = np.apply_along_axis(
            np.convolve, axis, np.pad(result, padding, mode="edge"), kernel, mode="valid"
        )
    return result


def sobel_by_numpy(np, gray):
    p = np.pad(gray.astype(int), 1, mode="edge")
    right, left = p[:, 2:], p[:, :-2]
    below, above = p[2:], p[:-2]
    dx = (right - left)[:-2] + 2 * (right - left)[1:-1] + (right - left)[2:]
    dy = (below - above)[:, :-2] + 2 * (below - above)[:, 1:-1] + (below - above)[:, 2:]
    return np.minimum(abs(dx) + abs(dy), 255)


def components_by_numpy(np, gray, threshold):
    """Floods from each pixel that has no label yet: slow, and plainly right."""
    labels = np.zeros(gray.shape, int)
    count = 0
    for start in zip(*np.nonzero(gray > threshold)):
        if labels[start]:
            continue
        count += 1
        todo = [start]
        while todo:
            y, x = todo.pop()
            inside = 0 <= y < gray.shape[0] and 0 <= x < gray.shape[1]
            if inside and gray[y, x] > threshold and not labels[y, x]:
                labels[y, x] = count
                todo += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return labels, count


def test_grayscale(cv, np, photo):
    expected = (photo.astype(int) @ [77, 150, 29] + 128) >> 8
    assert np.array_equal(cv.grayscale(photo), expected)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("channels", [1, 3])
def test_gaussian_blur(cv, np, photo, sigma, channels):
    image = photo if channels == 3 else photo[:, :, 2].copy()
    blurred = np.asarray(cv.gaussian_blur(image, sigma))
    assert blurred.shape == image.shape
    # Half a grey level of rounding, and a little of single precision.
    assert abs(blurred - blur_by_numpy(np, image, sigma)).max() < 0.51


@pytest.mark.parametrize("width, height", [(6, 6), (7, 6), (11, 30), (12, 13)])
def test_gaussian_blur_of_the_smallest_images_that_it_survives(cv, np, photo, width, height):
    image = photo[:height, :width, 0].copy()
    blurred = np.asarray(cv.gaussian_blur(image, 2.0))
    assert abs(blurred - blur_by_numpy(np, image, 2.0)).max() < 0.51


@pytest.mark.parametrize("shape", [(60, 83), (1, 1), (1, 9), (9, 1), (2, 2)])
def test_sobel_edges(cv, np, photo, shape):
    gray = photo[: shape[0], : shape[1], 2].copy()
    assert np.array_equal(cv.sobel_edges(gray), sobel_by_numpy(np, gray))


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(40, 57), (1, 30), (30, 1), (1, 1)])
def test_connected_components(cv, np, density, shape):
    rng = np.random.default_rng(int(100 * density))
    gray = np.where(rng.random(shape) < density, 200, 10).astype(np.uint8)
    labels, count = cv.connected_components(gray, 100)
    expected, expected_count = components_by_numpy(np, gray, 100)
    assert labels.format == "i" and np.asarray(labels).dtype == np.int32
    assert count == expected_count
    assert np.array_equal(labels, expected)


def test_connected_components_with_the_most_labels_an_image_can_have(cv, np):
    gray = np.zeros((31, 31), np.uint8)
    gray[::2, ::2] = 255
    assert cv.connected_components(gray, 0)[1] == 16 * 16


def test_detector(cv, np):
    gray = np.zeros((20, 30), np.uint8)
    gray[2:5, 3:9] = 200
    gray[10:12, 20:21] = 180
    detector = cv.Detector(threshold=150)
    assert (len(detector), detector.threshold) == (0, 150)
    assert detector.detect(gray) == len(detector) == 2
    big, small = detector
    assert (big.area, big.bbox, big.centroid) == (18, (3, 2, 6, 3), (5.5, 3.0))
    assert (small.area, small.bbox, small.centroid) == (2, (20, 10, 1, 2), (20.0, 10.5))
    assert detector[-1].area == 2 and [region.area for region in detector[:1]] == [18]
    with pytest.raises(IndexError):
        detector[2]
    detector.threshold = 190
    assert detector.detect(gray) == 1
    with pytest.raises(TypeError):
        cv.Region()


def test_image(cv, np):
    image = cv.Image(3, 2, data=bytes(range(6)))
    assert (image.width, image.height, image.channels, image.format) == (3, 2, 1, "B")
    assert image.tobytes() == bytes(range(6))
    array = np.asarray(image)
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    del image
    array[0, 0] = 9  # the array holds the image, and is a view of it
    assert array.base.obj.tobytes()[0] == 9
    assert cv.Image(2, 0, 3).tobytes() == b""
    with pytest.raises(ValueError, match="must have 6 bytes, not 1"):
        cv.Image(3, 2, data=b"x")


def test_any_buffer_will_do(cv):
    view = memoryview(bytes(range(30))).cast("B", shape=(2, 5, 3))
    assert cv.grayscale(view).tobytes() == cv.grayscale(cv.Image(5, 2, 3, bytes(range(30)))).tobytes()


def test_errors_have_codes(cv, np):
    cases = [
        (cv.E_CHANNELS, lambda: cv.grayscale(np.zeros((2, 2), np.uint8))),
        (cv.E_CHANNELS, lambda: cv.sobel_edges(np.zeros((2, 2, 3), np.uint8))),
        (cv.E_CHANNELS, lambda: cv.gaussian_blur(np.zeros((2, 2, 4), np.uint8), 1)),
        (cv.E_FORMAT, lambda: cv.grayscale(b"one dimension")),
        (cv.E_FORMAT, lambda: cv.sobel_edges(np.zeros((2, 2)))),
        (cv.E_FORMAT, lambda: cv.sobel_edges(np.zeros((4, 4), np.uint8)[:, ::2])),
        (cv.E_ARGUMENT, lambda: cv.gaussian_blur(np.zeros((9, 9), np.uint8), 0)),
        (cv.E_ARGUMENT, lambda: cv.gaussian_blur(np.zeros((9, 9), np.uint8), float("nan"))),
    ]
    for code, fails in cases:
        with pytest.raises(cv.Error) as caught:
            fails()
        assert caught.value.code == code and isinstance(caught.value, ValueError)
    with pytest.raises(TypeError):
        cv.sobel_edges("no buffer")


def test_invert(cv, np):
    array = np.arange(6, dtype=np.uint8)
    assert cv.invert(array) is None
    assert array.tolist() == [255, 254, 253, 252, 251, 250]
    with pytest.raises(BufferError):
        cv.invert(b"read only")


def test_each_row(cv, np, photo):
    rows = []
    assert cv.each_row(photo, lambda y, row: rows.append((y, row))) == 60
    assert rows == [(y, photo[y].tobytes()) for y in range(60)]

    def raises(y, row):
        raise LookupError(y)

    with pytest.raises(LookupError):
        cv.each_row(photo, raises)


def test_verbose_prints_from_c(cv, photo, capfd):
    cv.gaussian_blur(photo, 1.0, verbose=True)
    cv.noop()
    import ctypes

    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "gaussian_blur: 60 rows, radius 3\ngaussian_blur: 83 columns, radius 3\n"


# --- Deaths -----------------------------------------------------------------------------------------------


def run(code, **options):
    """Runs code in a Python of its own, with the victims importable."""
    environment = {**os.environ, "PYTHONPATH": str(VICTIMS)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, **options
    )


def death(code):
    """How it ended: the name of a signal, or the exit code."""
    status = run(code).returncode
    return signal.Signals(-status).name if status < 0 else status


@pytest.mark.parametrize(
    "call, expected",
    [
        # The bugs of cv_module, for each of the sizes that its README names.
        ("cv_module.gaussian_blur(cv_module.Image(5, 40), 2.0)", "SIGSEGV"),
        ("cv_module.gaussian_blur(cv_module.Image(40, 5), 2.0)", "SIGSEGV"),
        ("cv_module.gaussian_blur(cv_module.Image(1, 1), 0.5)", "SIGSEGV"),
        ("cv_module.gaussian_blur(cv_module.Image(17, 3000, 3), 6)", "SIGSEGV"),
        ("cv_module.gaussian_blur(cv_module.Image(3000, 17, 3), 6)", "SIGSEGV"),
        ("cv_module.gaussian_blur(cv_module.Image(0, 0), 2.0)", 0),
        ("cv_module.sobel_edges(cv_module.Image(0, 0))", "SIGSEGV"),
        ("cv_module.sobel_edges(cv_module.Image(0, 5))", "SIGSEGV"),
        ("cv_module.sobel_edges(cv_module.Image(5, 0))", "SIGSEGV"),
        ("cv_module.connected_components(cv_module.Image(5, 5), 256)", "SIGABRT"),
        ("cv_module.connected_components(cv_module.Image(5, 5), -1)", "SIGABRT"),
        ("cv_module.Detector(300).detect(cv_module.Image(5, 5))", "SIGABRT"),
        # Native deaths.
        ("_deaths.segfault()", "SIGSEGV"),
        # The sanitizer has shadow memory there.
        pytest.param("_deaths.segfault(0xdeadbeef000)", "SIGSEGV", marks=pytest.mark.no_asan),
        ("_deaths.abort()", "SIGABRT"),
        ("_deaths.fpe()", "SIGFPE"),
        ("_deaths.bus()", "SIGBUS"),
        ("_deaths.ill()", "SIGILL"),
        ("_deaths.exit(5)", 5),
        ("_deaths._exit(6)", 6),
        ("_deaths.kill_self(9)", "SIGKILL"),
        ("_deaths.kill_self(15)", "SIGTERM"),
        ("_deaths.stack_overflow()", "SIGSEGV"),
        # glibc's check; the sanitizer has one of its own.
        pytest.param("_deaths.double_free()", "SIGABRT", marks=pytest.mark.no_asan),
        ("_deaths.crash_in_thread()", "SIGSEGV"),
        ("_deaths.crash_in_thread(0.05); time.sleep(30)", "SIGSEGV"),
        ("_deaths.printf_then_crash('text')", "SIGSEGV"),
        ("_deaths.wild_write(bytearray(8), 0, 8, crash=True)", "SIGSEGV"),
        # Those of Python.
        ("deaths.exit_by_sys()", 3),
        ("deaths.exit_by_os()", 3),
        ("deaths.print_then_exit_by_os('text')", 3),
        ("deaths.interrupt()", "SIGINT"),
        ("deaths.interrupt_main(); time.sleep(30)", "SIGINT"),
        ("deaths.DiesInDel()", 3),
        ("repr(deaths.DiesInRepr())", 3),
        ("pickle.loads(pickle.dumps(deaths.DiesOnUnpickling()))", 3),
        ("buggy.dragons_here()", "SIGSEGV"),
        ("import dies_at_import", "SIGSEGV"),
        ("import fails_at_import", 1),
    ],
)
def test_death(call, expected):
    assert death(f"import buggy, cv_module, deaths, pickle, time, _deaths\n{call}") == expected


def test_the_assertion_says_what_failed():
    result = run("import cv_module; cv_module.connected_components(cv_module.Image(1, 1), 256)")
    assert result.stderr.startswith("cv: assertion failed: threshold >= 0 && threshold <= 255 (")


def test_an_import_that_fails_shows_its_cause():
    error = run("import fails_at_import").stderr
    assert "KeyError: 'backend'" in error and "RuntimeError: no backend is configured" in error


def test_python_survives_what_is_no_death():
    code = """
import deaths, threading, _deaths
try:
    deaths.recurse()
except RecursionError:
    print("recursion")
deaths.RaisesInDel()
print(deaths.recurse_to(100), deaths.fork()[1] >> 8)
"""
    result = run(code)
    assert (result.returncode, result.stdout) == (0, "recursion\n100 7\n")
    assert "ValueError: raised in __del__" in result.stderr


def test_wild_write_reaches_before_and_behind_its_argument():
    # Inside one larger buffer, so that the wild bytes can be looked at.
    code = """
import _deaths
whole = bytearray(300)
middle = memoryview(whole)[100:200]
_deaths.wild_write(middle, -2, 2)
_deaths.wild_write(middle, len(middle), 3, value=0xBB)
print(whole[95:105].hex(), whole[195:205].hex())
"""
    assert run(code).stdout == "000000aaaa0000000000 0000000000bbbbbb0000\n"


def test_slow_calls_and_threads():
    code = """
import os, threading, time, _deaths

def during(call, seconds):
    # How often another Python thread got a turn.
    turns, stop = [0], threading.Event()
    def count():
        while not stop.wait(0.01):
            turns[0] += 1
    thread = threading.Thread(target=count)
    thread.start()
    start, before = time.monotonic(), turns[0]
    call(seconds)
    seen = turns[0] - before
    took = time.monotonic() - start
    stop.set()
    thread.join()
    assert took >= seconds, took
    return seen

assert during(_deaths.hold_gil, 0.3) < 10  # of 30, were it free
during(_deaths.sleep_in_c_without_gil, 0.3)
start = time.monotonic()
threading.Thread(target=_deaths.sleep_in_c_without_gil, args=(50.0,), daemon=True).start()
for _ in range(5):
    time.sleep(0.01)
assert time.monotonic() - start < 25

print(_deaths.call_back_from_thread(lambda: threading.current_thread() is threading.main_thread()))
try:
    _deaths.call_back_from_thread(lambda: 1 / 0)
except ZeroDivisionError as error:
    print(error, error.__traceback__ is not None)
seen, done = threading.Event(), threading.Event()
_deaths.call_back_from_thread(lambda: seen.wait(10) and done.set(), 0.05)
print(done.is_set(), end=" ")
seen.set()
print(done.wait(10), flush=True)
out, (here, there) = os.dup(1), os.pipe()
os.dup2(there, 1)
_deaths.print_late("late\\n", 0.1)
late = os.read(here, 100)
os.write(out, late)
"""
    result = run(code)
    assert result.stderr == ""
    assert result.stdout == "False\ndivision by zero True\nFalse True\nlate\n"


def test_busy_loops_and_signals():
    """One loop hears SIGALRM and ends, the other does not."""
    code = """
import signal, time, _deaths
def stop(*args):
    raise TimeoutError
def note(*args):
    times.append(time.monotonic())
start, times = time.monotonic(), []
signal.signal(signal.SIGALRM, stop)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    _deaths.busy_checking_signals(50.0)
except TimeoutError:
    print(time.monotonic() - start < 25)
signal.signal(signal.SIGALRM, note)
note()
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
_deaths.hold_gil(0.5)
signal.setitimer(signal.ITIMER_REAL, 0)
for _ in range(1000): pass  # where Python sees it at last
note()
# Whenever the call began: nothing was heard while it lasted, and something after it or before.
print(max(b - a for a, b in zip(times, times[1:])) > 0.49, len(times) > 2)
"""
    assert run(code).stdout == "True\nTrue True\n"


@pytest.mark.no_asan  # its allocator keeps what is freed
def test_allocate_touches_what_it_takes():
    code = """
import _deaths, os
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
before = resident()
print(_deaths.allocate(40), _deaths.allocate(60), resident() - before >= 100)
_deaths.release_all()
print(_deaths.allocate(1), resident() - before < 50)
"""
    assert run(code).stdout == "40 100 True\n1 True\n"


def test_close_all_fds():
    code = """
import _deaths, os
r, w = os.pipe()
_deaths.close_all_fds(first=3)
print(os.path.exists(f"/proc/self/fd/{r}"), os.path.exists("/proc/self/fd/1"), flush=True)
_deaths.close_all_fds()
os._exit(0 if not os.path.exists("/proc/self/fd/1") else 1)
"""
    result = run(code)
    assert (result.returncode, result.stdout) == (0, "False True\n")


def test_the_package_imports_each_submodule_once():
    code = """
from victim_pkg.with_all import *
print(public, _listed, "unlisted" in globals())
from victim_pkg.without_all import *
print(public, function(), add(1, 2), "_private" in globals())
import victim_pkg, victim_pkg.shapes as shapes
print(shapes.Square(3).perimeter(), victim_pkg.describe(), victim_pkg.lazy.answer)
print(*(name.partition(".")[2] or "." for name in victim_pkg.imported))
try:
    import victim_pkg.fails_inside
except ImportError as error:
    print(error.name)
"""
    assert run(code).stdout.splitlines() == [
        "1 3 False",
        "1 function 3 False",
        "12 victim_pkg with Counter 42",
        "_core surface . with_all without_all shapes.square lazy",
        "victim_pkg.shapes",
    ]
