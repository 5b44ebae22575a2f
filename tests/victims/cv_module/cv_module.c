/* cv_module: the Python binding of cv.c.
 *
 * Images come in through the buffer protocol, so NumPy arrays work, and NumPy is not needed.
 * Results are cv_module.Image objects, which export the buffer protocol in turn:
 * numpy.asarray(image) makes no copy. The library runs without the GIL.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "cv.h"

typedef struct {
    PyTypeObject *image_type;
    PyTypeObject *region_type;
    PyTypeObject *detector_type;
    PyObject *error;
} module_state;

static struct PyModuleDef cv_module_def;

static module_state *
state_of_module(PyObject *module)
{
    return PyModule_GetState(module);
}

/* From an instance; also of a Python subclass. */
static module_state *
state_of_object(PyObject *self)
{
    return PyModule_GetState(PyType_GetModuleByDef(Py_TYPE(self), &cv_module_def));
}

/* --- Error --------------------------------------------------------------------------------------
 */

static const struct {
    cv_status code;
    const char *name, *text;
} errors[] = {
    {CV_EFORMAT, "E_FORMAT", "expected a C-contiguous image of unsigned bytes"},
    {CV_ECHANNELS, "E_CHANNELS", "wrong number of channels"},
    {CV_EARGUMENT, "E_ARGUMENT", "argument out of range"},
};

/* Raises Error(text) with the attribute `code`; returns NULL. */
static PyObject *
raise_error(module_state *state, cv_status status)
{
    if (status == CV_ENOMEM) {
        return PyErr_NoMemory();
    }
    const char *text = "unknown error";
    for (size_t i = 0; i < Py_ARRAY_LENGTH(errors); i++) {
        if (errors[i].code == status) {
            text = errors[i].text;
        }
    }
    PyObject *error = PyObject_CallFunction(state->error, "s", text);
    PyObject *code = PyLong_FromLong(status);
    if (error != NULL && code != NULL && PyObject_SetAttrString(error, "code", code) == 0) {
        PyErr_SetObject(state->error, error);
    }
    Py_XDECREF(code);
    Py_XDECREF(error);
    return NULL;
}

/* --- Images that come in ------------------------------------------------------------------------
 */

/* Describes any C-contiguous (height, width) or (height, width, 3) buffer of unsigned bytes as an
   image. The caller releases the view. Returns 0, or -1 with an exception. */
static int
borrow_image(module_state *state, PyObject *object, Py_buffer *view, cv_image *image)
{
    if (PyObject_GetBuffer(object, view, PyBUF_ND | PyBUF_FORMAT) < 0) {
        /* NumPy says ValueError where the protocol says BufferError. */
        if (PyErr_ExceptionMatches(PyExc_BufferError) || PyErr_ExceptionMatches(PyExc_ValueError)) {
            PyErr_Clear();
            raise_error(state, CV_EFORMAT);
        }
        return -1;
    }
    cv_status status = CV_OK;
    if (view->itemsize != 1 || (view->format != NULL && strcmp(view->format, "B") != 0) ||
        (view->ndim != 2 && view->ndim != 3)) {
        status = CV_EFORMAT;
    }
    else if (view->ndim == 3 && view->shape[2] != 3) {
        status = CV_ECHANNELS;
    }
    else if (view->shape[0] > INT32_MAX || view->shape[1] > INT32_MAX) {
        status = CV_EARGUMENT;
    }
    if (status != CV_OK) {
        PyBuffer_Release(view);
        raise_error(state, status);
        return -1;
    }
    *image = (cv_image){
        .data = view->buf,
        .width = (uint32_t)view->shape[1],
        .height = (uint32_t)view->shape[0],
        .channels = view->ndim == 3 ? 3 : 1,
    };
    return 0;
}

/* --- Image --------------------------------------------------------------------------------------
 */

typedef struct {
    PyObject_HEAD
    void *data; /* owned */
    unsigned int width, height, channels;
    const char *format; /* "B": pixels, "i": labels */
    Py_ssize_t itemsize, size;
    Py_ssize_t shape[3], strides[3];
} Image;

/* A new reference, zero-filled; NULL with an exception. `type` may be a subclass. */
static Image *
new_image(PyTypeObject *type, uint32_t width, uint32_t height, uint32_t channels,
          const char *format)
{
    Image *self = (Image *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->width = width;
    self->height = height;
    self->channels = channels;
    self->format = format;
    self->itemsize = format[0] == 'i' ? (Py_ssize_t)sizeof(int32_t) : 1;
    self->shape[0] = height;
    self->shape[1] = width;
    self->shape[2] = channels;
    self->strides[2] = self->itemsize;
    self->strides[1] = self->itemsize * channels;
    self->strides[0] = self->strides[1] * width;
    self->size = self->strides[0] * height;
    self->data = PyMem_RawCalloc(self->size > 0 ? (size_t)self->size : 1, 1);
    if (self->data == NULL) {
        Py_DECREF(self);
        PyErr_NoMemory();
        return NULL;
    }
    return self;
}

static PyObject *
Image_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"width", "height", "channels", "data", "format", NULL};
    int width, height, channels = 1;
    Py_buffer data = {0};
    const char *format = "B";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ii|iy*s:Image", names, &width, &height,
                                     &channels, &data, &format)) {
        return NULL;
    }
    Image *self = NULL;
    const char *known = strcmp(format, "B") == 0 ? "B" : strcmp(format, "i") == 0 ? "i" : NULL;
    if (width < 0 || height < 0 || known == NULL || (channels != 1 && channels != 3)) {
        PyErr_SetString(PyExc_ValueError, "width and height must not be negative, channels 1 or 3, "
                                          "format 'B' or 'i'");
        goto done;
    }
    self = new_image(type, (uint32_t)width, (uint32_t)height, (uint32_t)channels, known);
    if (self == NULL || data.len == 0) {
        goto done;
    }
    if (data.len != self->size) {
        PyErr_Format(PyExc_ValueError, "data must have %zd bytes, not %zd", self->size, data.len);
        Py_CLEAR(self);
        goto done;
    }
    memcpy(self->data, data.buf, (size_t)data.len);
done:
    if (data.obj != NULL) {
        PyBuffer_Release(&data);
    }
    return (PyObject *)self;
}

static void
Image_dealloc(Image *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyMem_RawFree(self->data);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
Image_getbuffer(Image *self, Py_buffer *view, int flags)
{
    *view = (Py_buffer){
        .buf = self->data,
        .obj = Py_NewRef(self),
        .len = self->size,
        .itemsize = self->itemsize,
        .ndim = self->channels == 1 ? 2 : 3,
        .format = flags & PyBUF_FORMAT ? (char *)self->format : NULL,
        .shape = flags & PyBUF_ND ? self->shape : NULL,
        .strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? self->strides : NULL,
    };
    if (!(flags & PyBUF_ND)) {
        view->ndim = 1; /* one run of bytes, as the protocol asks for a request without shape */
    }
    if ((flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS) {
        Py_CLEAR(view->obj);
        PyErr_SetString(PyExc_BufferError, "the rows of an Image are C-contiguous");
        return -1;
    }
    return 0;
}

static PyObject *
Image_tobytes(Image *self, PyObject *Py_UNUSED(ignored))
{
    return PyBytes_FromStringAndSize(self->data, self->size);
}

static PyObject *
Image_reduce(Image *self, PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("O(IIIy#s)", Py_TYPE(self), self->width, self->height, self->channels,
                         self->data, self->size, self->format);
}

static PyObject *
Image_repr(Image *self)
{
    return PyUnicode_FromFormat("<%s %u x %u, %s>", Py_TYPE(self)->tp_name, self->width,
                                self->height,
                                self->format[0] == 'i' ? "labels"
                                : self->channels == 3  ? "RGB"
                                                       : "gray");
}

static PyMethodDef Image_methods[] = {
    {"tobytes", (PyCFunction)Image_tobytes, METH_NOARGS,
     "tobytes($self, /)\n--\n\nThe elements as bytes, row by row."},
    {"__reduce__", (PyCFunction)Image_reduce, METH_NOARGS, NULL},
    {0},
};

static PyMemberDef Image_members[] = {
    {"width", T_UINT, offsetof(Image, width), READONLY, "pixels in a row"},
    {"height", T_UINT, offsetof(Image, height), READONLY, "rows"},
    {"channels", T_UINT, offsetof(Image, channels), READONLY, "1: gray or labels, 3: RGB"},
    {"format", T_STRING, offsetof(Image, format), READONLY, "'B': pixels, 'i': int32 labels"},
    {0},
};

PyDoc_STRVAR(
    Image_doc,
    "Image(width, height, channels=1, data=b'', format='B')\n--\n\n"
    "An image in memory of its own; numpy.asarray(image) is a view of it. Zeros without data.");

static PyType_Slot Image_slots[] = {
    {Py_tp_doc, (void *)Image_doc},     {Py_tp_new, Image_new},
    {Py_tp_dealloc, Image_dealloc},     {Py_tp_repr, Image_repr},
    {Py_tp_methods, Image_methods},     {Py_tp_members, Image_members},
    {Py_bf_getbuffer, Image_getbuffer}, {0},
};

static PyType_Spec Image_spec = {
    .name = "cv_module.Image",
    .basicsize = sizeof(Image),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = Image_slots,
};

/* --- Region -------------------------------------------------------------------------------------
 */

typedef struct {
    PyObject_HEAD
    cv_region measured;
} Region;

static PyObject *
new_region(module_state *state, const cv_region *measured)
{
    Region *self = (Region *)state->region_type->tp_alloc(state->region_type, 0);
    if (self != NULL) {
        self->measured = *measured;
    }
    return (PyObject *)self;
}

static void
Region_dealloc(Region *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
Region_area(Region *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(self->measured.area);
}

static PyObject *
Region_bbox(Region *self, void *Py_UNUSED(closure))
{
    const cv_region *r = &self->measured;
    return Py_BuildValue("IIII", r->left, r->top, r->right - r->left + 1, r->bottom - r->top + 1);
}

static PyObject *
Region_centroid(Region *self, void *Py_UNUSED(closure))
{
    const cv_region *r = &self->measured;
    return Py_BuildValue("dd", r->sum_x / r->area, r->sum_y / r->area);
}

static PyObject *
Region_repr(Region *self)
{
    const cv_region *r = &self->measured;
    return PyUnicode_FromFormat("<cv_module.Region of %u pixels at (%u, %u)>", r->area, r->left,
                                r->top);
}

static PyGetSetDef Region_getset[] = {
    {"area", (getter)Region_area, NULL, "number of pixels", NULL},
    {"bbox", (getter)Region_bbox, NULL, "(x, y, width, height)", NULL},
    {"centroid", (getter)Region_centroid, NULL, "(x, y), the mean of its pixels", NULL},
    {0},
};

static PyType_Slot Region_slots[] = {
    {Py_tp_doc, "A connected component that a Detector found."},
    {Py_tp_dealloc, Region_dealloc},
    {Py_tp_repr, Region_repr},
    {Py_tp_getset, Region_getset},
    {0},
};

static PyType_Spec Region_spec = {
    .name = "cv_module.Region",
    .basicsize = sizeof(Region),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Region_slots,
};

/* --- Functions ----------------------------------------------------------------------------------
 */

typedef cv_status (*filter)(const cv_image *image, uint8_t *out, bool verbose);

/* grayscale and sobel_edges: an image in, a gray image of the same size out. */
static PyObject *
apply_filter(PyObject *module, PyObject *args, PyObject *kwargs, const char *format, filter apply)
{
    static char *names[] = {"", "verbose", NULL};
    module_state *state = state_of_module(module);
    PyObject *object;
    int verbose = 0;
    Py_buffer view;
    cv_image image;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &object, &verbose) ||
        borrow_image(state, object, &view, &image) < 0) {
        return NULL;
    }
    Image *out = new_image(state->image_type, image.width, image.height, 1, "B");
    if (out != NULL) {
        cv_status status;
        Py_BEGIN_ALLOW_THREADS
        status = apply(&image, out->data, verbose);
        Py_END_ALLOW_THREADS
        if (status != CV_OK) {
            Py_CLEAR(out);
            raise_error(state, status);
        }
    }
    PyBuffer_Release(&view);
    return (PyObject *)out;
}

PyDoc_STRVAR(grayscale_doc, "grayscale($module, rgb, /, *, verbose=False)\n--\n\n"
                            "The luma of an RGB image.");

static PyObject *
grayscale(PyObject *module, PyObject *args, PyObject *kwargs)
{
    return apply_filter(module, args, kwargs, "O|$p:grayscale", cv_grayscale);
}

PyDoc_STRVAR(sobel_edges_doc, "sobel_edges($module, gray, /, *, verbose=False)\n--\n\n"
                              "The strength of the edges, |dx| + |dy|, at most 255.");

static PyObject *
sobel_edges(PyObject *module, PyObject *args, PyObject *kwargs)
{
    return apply_filter(module, args, kwargs, "O|$p:sobel_edges", cv_sobel_edges);
}

PyDoc_STRVAR(gaussian_blur_doc, "gaussian_blur($module, image, sigma, *, verbose=False)\n--\n\n"
                                "The image, gray or RGB, blurred.");

static PyObject *
gaussian_blur(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"image", "sigma", "verbose", NULL};
    module_state *state = state_of_module(module);
    PyObject *object;
    double sigma;
    int verbose = 0;
    Py_buffer view;
    cv_image image;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Od|$p:gaussian_blur", names, &object, &sigma,
                                     &verbose) ||
        borrow_image(state, object, &view, &image) < 0) {
        return NULL;
    }
    Image *out = new_image(state->image_type, image.width, image.height, image.channels, "B");
    if (out != NULL) {
        cv_status status;
        Py_BEGIN_ALLOW_THREADS
        status = cv_gaussian_blur(&image, sigma, out->data, verbose);
        Py_END_ALLOW_THREADS
        if (status != CV_OK) {
            Py_CLEAR(out);
            raise_error(state, status);
        }
    }
    PyBuffer_Release(&view);
    return (PyObject *)out;
}

/* Labels a borrowed image; a new reference, or NULL with an exception. */
static Image *
label_image(module_state *state, const cv_image *image, int threshold, bool verbose,
            uint32_t *count)
{
    Image *labels = new_image(state->image_type, image->width, image->height, 1, "i");
    if (labels == NULL) {
        return NULL;
    }
    cv_status status;
    Py_BEGIN_ALLOW_THREADS
    status = cv_connected_components(image, threshold, labels->data, count, verbose);
    Py_END_ALLOW_THREADS
    if (status != CV_OK) {
        Py_CLEAR(labels);
        raise_error(state, status);
    }
    return labels;
}

PyDoc_STRVAR(connected_components_doc,
             "connected_components($module, gray, threshold, *, verbose=False)\n--\n\n"
             "Labels the connected pixels brighter than threshold (0 .. 255).\n\n"
             "Returns (labels, count): an int32 Image, where 0 is background.");

static PyObject *
connected_components(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"gray", "threshold", "verbose", NULL};
    module_state *state = state_of_module(module);
    PyObject *object;
    int threshold, verbose = 0;
    Py_buffer view;
    cv_image image;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oi|$p:connected_components", names, &object,
                                     &threshold, &verbose) ||
        borrow_image(state, object, &view, &image) < 0) {
        return NULL;
    }
    uint32_t count;
    Image *labels = label_image(state, &image, threshold, verbose, &count);
    PyBuffer_Release(&view);
    return labels == NULL ? NULL : Py_BuildValue("(NI)", labels, count);
}

PyDoc_STRVAR(invert_doc, "invert($module, buffer, /)\n--\n\n"
                         "Inverts the bytes of a writable buffer in place.");

static PyObject *
invert(PyObject *Py_UNUSED(module), PyObject *object)
{
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    cv_invert(view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(each_row_doc, "each_row($module, image, callback, /)\n--\n\n"
                           "Calls callback(y, row) with the bytes of each row; returns the number "
                           "of rows.");

static PyObject *
each_row(PyObject *module, PyObject *args)
{
    module_state *state = state_of_module(module);
    PyObject *object, *callback;
    Py_buffer view;
    cv_image image;
    if (!PyArg_ParseTuple(args, "OO:each_row", &object, &callback) ||
        borrow_image(state, object, &view, &image) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    const Py_ssize_t row = (Py_ssize_t)image.width * image.channels;
    for (uint32_t y = 0; y < image.height; y++) {
        PyObject *ignored =
            PyObject_CallFunction(callback, "Iy#", y, (const char *)image.data + y * row, row);
        if (ignored == NULL) {
            goto done;
        }
        Py_DECREF(ignored);
    }
    result = PyLong_FromUnsignedLong(image.height);
done:
    PyBuffer_Release(&view);
    return result;
}

static PyObject *
noop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_NONE;
}

/* --- Detector -----------------------------------------------------------------------------------
 */

typedef struct {
    PyObject_HEAD
    int threshold;
    PyObject *regions; /* a list that nobody else sees */
} Detector;

static PyObject *
Detector_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"threshold", NULL};
    int threshold = 128;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|i:Detector", names, &threshold)) {
        return NULL;
    }
    Detector *self = (Detector *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->threshold = threshold;
    self->regions = PyList_New(0);
    if (self->regions == NULL) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static int
Detector_traverse(Detector *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->regions);
    return 0;
}

static int
Detector_clear(Detector *self)
{
    Py_CLEAR(self->regions);
    return 0;
}

static void
Detector_dealloc(Detector *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Detector_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* A new list of Regions; NULL with an exception. */
static PyObject *
regions_of_labels(module_state *state, const Image *labels, uint32_t count)
{
    PyObject *regions = NULL;
    cv_region *measured = PyMem_Calloc(count > 0 ? count : 1, sizeof *measured);
    if (measured == NULL) {
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    cv_measure_regions(labels->data, labels->width, labels->height, count, measured);
    Py_END_ALLOW_THREADS
    regions = PyList_New(count);
    for (uint32_t i = 0; regions != NULL && i < count; i++) {
        PyObject *region = new_region(state, &measured[i]);
        if (region == NULL) {
            Py_CLEAR(regions);
        }
        else {
            PyList_SET_ITEM(regions, i, region);
        }
    }
    PyMem_Free(measured);
    return regions;
}

PyDoc_STRVAR(detect_doc, "detect($self, gray, /)\n--\n\n"
                         "Finds the regions brighter than the threshold; returns how many.");

static PyObject *
Detector_detect(Detector *self, PyObject *object)
{
    module_state *state = state_of_object((PyObject *)self);
    Py_buffer view;
    cv_image image;
    if (borrow_image(state, object, &view, &image) < 0) {
        return NULL;
    }
    uint32_t count;
    Image *labels = label_image(state, &image, self->threshold, false, &count);
    PyBuffer_Release(&view);
    if (labels == NULL) {
        return NULL;
    }
    PyObject *regions = regions_of_labels(state, labels, count);
    Py_DECREF(labels);
    if (regions == NULL) {
        return NULL;
    }
    Py_XSETREF(self->regions, regions);
    return PyLong_FromUnsignedLong(count);
}

static Py_ssize_t
Detector_length(Detector *self)
{
    return PyList_GET_SIZE(self->regions);
}

/* As a sequence too, so that iter() and `in` work by index. */
static PyObject *
Detector_item(Detector *self, Py_ssize_t index)
{
    return PySequence_GetItem(self->regions, index);
}

static PyObject *
Detector_subscript(Detector *self, PyObject *key)
{
    return PyObject_GetItem(self->regions, key);
}

static PyObject *
Detector_repr(Detector *self)
{
    return PyUnicode_FromFormat("<%s threshold=%d, %zd regions>", Py_TYPE(self)->tp_name,
                                self->threshold, PyList_GET_SIZE(self->regions));
}

static PyMethodDef Detector_methods[] = {
    {"detect", (PyCFunction)Detector_detect, METH_O, detect_doc},
    {0},
};

static PyMemberDef Detector_members[] = {
    {"threshold", T_INT, offsetof(Detector, threshold), 0, "pixels brighter than this are found"},
    {0},
};

PyDoc_STRVAR(Detector_doc, "Detector(threshold=128)\n--\n\n"
                           "Finds bright regions; a sequence of those that it found last.");

static PyType_Slot Detector_slots[] = {
    {Py_tp_doc, (void *)Detector_doc},
    {Py_tp_new, Detector_new},
    {Py_tp_traverse, Detector_traverse},
    {Py_tp_clear, Detector_clear},
    {Py_tp_dealloc, Detector_dealloc},
    {Py_tp_repr, Detector_repr},
    {Py_tp_methods, Detector_methods},
    {Py_tp_members, Detector_members},
    {Py_sq_length, Detector_length},
    {Py_sq_item, Detector_item},
    {Py_mp_length, Detector_length},
    {Py_mp_subscript, Detector_subscript},
    {0},
};

static PyType_Spec Detector_spec = {
    .name = "cv_module.Detector",
    .basicsize = sizeof(Detector),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = Detector_slots,
};

/* --- Module -------------------------------------------------------------------------------------
 */

/* Creates one type and puts it into the module. */
static int
add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type)
{
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *type == NULL ? -1 : PyModule_AddType(module, *type);
}

/* Creates Error, whose class has code = 0, and the names of the codes. */
static int
add_error(PyObject *module, PyObject **error)
{
    PyObject *namespace = Py_BuildValue("{s:i}", "code", CV_OK);
    if (namespace == NULL) {
        return -1;
    }
    *error = PyErr_NewExceptionWithDoc("cv_module.Error",
                                       "The library refused; `code` is one of the E_ constants.",
                                       PyExc_ValueError, namespace);
    Py_DECREF(namespace);
    if (*error == NULL || PyModule_AddObjectRef(module, "Error", *error) < 0) {
        return -1;
    }
    for (size_t i = 0; i < Py_ARRAY_LENGTH(errors); i++) {
        if (PyModule_AddIntConstant(module, errors[i].name, errors[i].code) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
cv_module_exec(PyObject *module)
{
    module_state *state = state_of_module(module);
    if (add_type(module, &Image_spec, &state->image_type) < 0 ||
        add_type(module, &Region_spec, &state->region_type) < 0 ||
        add_type(module, &Detector_spec, &state->detector_type) < 0 ||
        add_error(module, &state->error) < 0) {
        return -1;
    }
    return 0;
}

static int
cv_module_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = state_of_module(module);
    Py_VISIT(state->image_type);
    Py_VISIT(state->region_type);
    Py_VISIT(state->detector_type);
    Py_VISIT(state->error);
    return 0;
}

static int
cv_module_clear(PyObject *module)
{
    module_state *state = state_of_module(module);
    Py_CLEAR(state->image_type);
    Py_CLEAR(state->region_type);
    Py_CLEAR(state->detector_type);
    Py_CLEAR(state->error);
    return 0;
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void)) function, METH_VARARGS | METH_KEYWORDS

static PyMethodDef cv_module_methods[] = {
    {"grayscale", KEYWORDS(grayscale), grayscale_doc},
    {"gaussian_blur", KEYWORDS(gaussian_blur), gaussian_blur_doc},
    {"sobel_edges", KEYWORDS(sobel_edges), sobel_edges_doc},
    {"connected_components", KEYWORDS(connected_components), connected_components_doc},
    {"invert", invert, METH_O, invert_doc},
    {"each_row", each_row, METH_VARARGS, each_row_doc},
    {"noop", noop, METH_NOARGS, "noop($module, /)\n--\n\nDoes nothing."},
    {0},
};

static PyModuleDef_Slot cv_module_slots[] = {
    {Py_mod_exec, cv_module_exec},
    {0},
};

static struct PyModuleDef cv_module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "cv_module",
    .m_doc = "A small computer-vision library in C, with the bugs that such libraries have.",
    .m_size = sizeof(module_state),
    .m_methods = cv_module_methods,
    .m_slots = cv_module_slots,
    .m_traverse = cv_module_traverse,
    .m_clear = cv_module_clear,
};

PyMODINIT_FUNC
PyInit_cv_module(void)
{
    return PyModuleDef_Init(&cv_module_def);
}
