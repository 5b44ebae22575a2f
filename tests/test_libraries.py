"""NumPy and OpenCV, isolated and used as their users use them; the plain library is the oracle."""

import importlib

import numpy
import pytest

import ipython_isolation

NUMPY = [
    "a",
    "a + 1, 1 + a, a * a, a @ a.T, -a, a ** 2, 2 ** a, a % 5, divmod(a, 3)[1]",
    "a[1], a[1, 2], a[:, 1], a[a > 5], a[..., None].shape, a[[0, 2]]",
    "a.sum(), a.mean(axis=0), a.max(1), a.T.shape, a.dtype, a.shape, a.ndim, len(a)",
    "float(a.sum()), int(a[0, 1]), bool((a == a).all()), a.tolist()",
    "list(a[0]), [row.sum() for row in a]",
    "np.linalg.inv(np.eye(3) * 2), np.linalg.norm(a), np.linalg.eigvalsh(np.eye(2))",
    "np.float64(3) + 1, np.int32(7) // 2, np.pi, np.iinfo(np.int32).max, np.finfo(float).eps",
    "np.add(a, a), np.add.reduce(a), np.multiply.outer([1, 2], [3, 4]), np.sin(a).round(3)",
    "np.array([[1, 2], [3, 4]]), np.zeros((2, 2), dtype=np.float32), np.arange(3.0), np.full(2, 7)",
    "np.random.default_rng(0).random(3), np.random.default_rng(1).integers(0, 9, 4)",
    "np.concatenate([a, a]).shape, np.vstack([a, a]).shape, np.split(a, 3)[1]",
    "np.where(a > 5, a, 0), np.einsum('ij,kj->ik', a, a), np.clip(a, 2, 6), np.unique([3, 1, 3])",
    "np.polyfit([0, 1, 2], [1, 3, 5], 1).round(6), np.fft.fft([1, 2, 3, 4]), np.interp(1.5, [1, 2], [3, 4])",
    "memoryview(a).shape, bytes(a[0]), memoryview(a).format",
    "np.vectorize(lambda x: x + 1)(a[0]), np.apply_along_axis(lambda r: r.sum(), 1, a)",
    "np.dtype('f8') == np.float64, np.dtype([('x', 'i4'), ('y', 'f8')]).names, a.dtype.kind",
    "np.zeros(2, dtype=[('x', 'i4'), ('y', 'f8')])['y']",
    "isinstance(a, np.ndarray), type(a) is np.ndarray, isinstance(np.float64(1), float)",
    "sorted([3, 1, 2], key=np.negative), max(a[0]), sum(a[0]), np.s_[1:2]",
    "str(a), format(np.float64(1.5), '.3f'), '%d' % a[0, 1], f'{a[1, 1]:>5}'",
    "np.isnan(float('nan')), np.isclose(0.1 + 0.2, 0.3), np.allclose(a, a)",
    "[x for x in np.nditer(a[0])], list(np.ndenumerate(np.eye(2)))[1], list(np.ndindex(2, 2))",
    "np.load.__module__, np.ndarray.__doc__[:20], np.sum.__name__",
]

NUMPY_STATEMENTS = {
    "in-place": "a += 1; a[0, 0] = 99; a[1] = [7, 7, 7, 7]; a *= 2; r = a",
    "identity": "b = a; b -= 1; r = b is a, a",
    "sort": "x = np.array([3, 1, 2]); x.sort(); r = x",
    "shuffle": "x = np.arange(5); np.random.default_rng(0).shuffle(x); r = x",
    "out": "x = np.zeros(4); np.sqrt(a[0], out=x); r = x",
    "value error": "try:\n np.zeros(3) + np.zeros(4)\nexcept ValueError as e: r = str(e)",
    "linalg error": "try:\n np.linalg.inv(np.zeros((2, 2)))\nexcept np.linalg.LinAlgError as e: r = str(e), type(e).__name__",
    "subclass": "class Sub(np.ndarray):\n def hello(self): return 'hi'\ns = a.view(Sub)\nr = type(s).__name__, s.hello(), int(s.sum())",
    "errstate": "with np.errstate(divide='ignore'): r = np.array([1.0]) / 0",
    "masked": "m = np.ma.masked_greater(a, 5); r = m.sum(), m.count()",
}


@pytest.fixture(scope="module")
def isolated_numpy():
    with ipython_isolation.IsolationContext(name="numpy") as context:
        yield context.load_module("numpy")


def _run(np, statement):
    namespace = {"np": np, "a": np.arange(12).reshape(3, 4)}
    exec(statement, namespace)
    return repr(namespace["r"])


@pytest.mark.parametrize("expression", NUMPY)
def test_numpy(isolated_numpy, expression):
    assert _run(isolated_numpy, f"r = ({expression})") == _run(numpy, f"r = ({expression})")


@pytest.mark.parametrize("statement", NUMPY_STATEMENTS.values(), ids=NUMPY_STATEMENTS)
def test_numpy_statements(isolated_numpy, statement):
    assert _run(isolated_numpy, statement) == _run(numpy, statement)


# ---- OpenCV: images are real arrays of the session ----


def _image():
    y, x = numpy.mgrid[0:120, 0:160]
    image = numpy.stack([x, y, (x * y) % 256], axis=-1).astype("uint8")
    image[30:60, 40:90] = 255
    return image


def filters(cv2):
    gray = cv2.cvtColor(_image(), cv2.COLOR_BGR2GRAY)
    blurred = cv2.GaussianBlur(gray, (5, 5), 1.5)
    return gray, blurred, cv2.Canny(blurred, 50, 150), cv2.Sobel(gray, cv2.CV_32F, 1, 0)


def geometry(cv2):
    image = _image()
    matrix = cv2.getRotationMatrix2D((80, 60), 30, 1.0)
    return cv2.resize(image, (40, 30)), cv2.warpAffine(image, matrix, (160, 120)), matrix, cv2.flip(image, 1)


def drawing(cv2):
    image = _image()
    returned = cv2.rectangle(image, (10, 10), (50, 50), (255, 0, 0), 2)
    assert returned is image
    cv2.circle(image, (80, 60), 20, (0, 255, 0), -1)
    cv2.putText(image, "text", (5, 100), cv2.FONT_HERSHEY_SIMPLEX, 1, (1, 2, 3))
    return image


def drawing_on_a_view(cv2):
    image = _image()
    cv2.line(image[:, 20:140], (0, 0), (100, 100), (9, 8, 7), 3)
    return image


def components(cv2):
    gray = cv2.cvtColor(_image(), cv2.COLOR_BGR2GRAY)
    _, binary = cv2.threshold(gray, 200, 255, cv2.THRESH_BINARY)
    n, labels, stats, centroids = cv2.connectedComponentsWithStats(binary)
    contours, _ = cv2.findContours(binary, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return n, labels, stats, centroids, len(contours), contours[0], cv2.boundingRect(contours[0])


def codecs(cv2):
    ok, data = cv2.imencode(".png", _image())
    return ok, data, cv2.imdecode(data, cv2.IMREAD_COLOR)


def features(cv2):
    gray = cv2.cvtColor(_image(), cv2.COLOR_BGR2GRAY)
    keypoints, descriptors = cv2.ORB_create(nfeatures=50).detectAndCompute(gray, None)
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(descriptors, descriptors)
    drawn = cv2.drawKeypoints(gray, keypoints, None)
    return [k.pt for k in keypoints[:5]], descriptors, [m.distance for m in matches], drawn


def errors(cv2):
    try:
        cv2.cvtColor(_image()[:, :, 0], cv2.COLOR_BGR2GRAY)
    except cv2.error as error:
        return error.code, error.func, isinstance(error, Exception), type(error).__name__
    raise AssertionError("no error")


@pytest.fixture(scope="module")
def isolated_cv2():
    with ipython_isolation.IsolationContext(name="opencv") as context:
        yield context.load_module("cv2")


def _plain(value):
    if isinstance(value, numpy.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


@pytest.mark.parametrize(
    "use", [filters, geometry, drawing, drawing_on_a_view, components, codecs, features, errors], ids=lambda f: f.__name__
)
def test_opencv(isolated_cv2, use):
    assert _plain(use(isolated_cv2)) == _plain(use(importlib.import_module("cv2")))
