#include "cv.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CV_ASSERT(condition)                                                                       \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "cv: assertion failed: %s (%s, line %d)\n", #condition, __func__,      \
                    __LINE__);                                                                     \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static size_t
pixel_count(const cv_image *image)
{
    return (size_t)image->width * image->height;
}

static uint8_t
saturate(int value)
{
    return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value;
}

/* --- Grayscale ----------------------------------------------------------------------------------
 */

cv_status
cv_grayscale(const cv_image *rgb, uint8_t *gray, bool verbose)
{
    if (rgb->channels != 3) {
        return CV_ECHANNELS;
    }
    if (verbose) {
        printf("grayscale: %u x %u\n", rgb->width, rgb->height);
    }
    const uint8_t *pixel = rgb->data;
    for (size_t i = 0, n = pixel_count(rgb); i < n; i++, pixel += 3) {
        /* ITU-R 601 luma with weights that sum to 256. */
        gray[i] = (uint8_t)((77 * pixel[0] + 150 * pixel[1] + 29 * pixel[2] + 128) >> 8);
    }
    return CV_OK;
}

/* --- Gaussian blur ------------------------------------------------------------------------------
 */

/* One sample of the convolution, near a border: what lies outside repeats the last pixel. */
static float
clamped_sample(const float *line, uint32_t n, size_t stride, const float *kernel, uint32_t radius,
               uint32_t center)
{
    float sum = 0;
    for (int64_t k = -(int64_t)radius; k <= (int64_t)radius; k++) {
        int64_t at = (int64_t)center + k;
        at = at < 0 ? 0 : at >= (int64_t)n ? (int64_t)n - 1 : at;
        sum += kernel[k + radius] * line[(size_t)at * stride];
    }
    return sum;
}

/* Convolves one row or column of n samples that are `stride` apart. */
static void
blur_line(const float *line, float *out, uint32_t n, size_t stride, const float *kernel,
          uint32_t radius)
{
    /* Both borders at once, from the outside in. */
    for (uint32_t i = 0; i < radius; i++) {
        out[i * stride] = clamped_sample(line, n, stride, kernel, radius, i);
        out[(n - 1 - i) * stride] = clamped_sample(line, n, stride, kernel, radius, n - 1 - i);
    }
    /* The interior needs no clamping. */
    for (uint32_t i = radius; i + radius < n; i++) {
        const float *from = line + (i - radius) * stride;
        float sum = 0;
        for (uint32_t k = 0; k <= 2 * radius; k++) {
            sum += kernel[k] * from[k * stride];
        }
        out[i * stride] = sum;
    }
}

/* The caller frees the result; NULL when out of memory. */
static float *
gaussian_kernel(double sigma, uint32_t radius)
{
    float *kernel = malloc((2 * radius + 1) * sizeof *kernel);
    if (kernel == NULL) {
        return NULL;
    }
    double sum = 0;
    for (uint32_t i = 0; i <= 2 * radius; i++) {
        double x = (double)i - radius;
        kernel[i] = (float)exp(-x * x / (2 * sigma * sigma));
        sum += kernel[i];
    }
    for (uint32_t i = 0; i <= 2 * radius; i++) {
        kernel[i] = (float)(kernel[i] / sum);
    }
    return kernel;
}

cv_status
cv_gaussian_blur(const cv_image *image, double sigma, uint8_t *blurred, bool verbose)
{
    if (!(sigma > 0 && sigma <= 100)) { /* also refuses NaN */
        return CV_EARGUMENT;
    }
    const uint32_t radius = (uint32_t)ceil(3 * sigma);
    const size_t row = (size_t)image->width * image->channels;
    const size_t n = row * image->height;
    if (n == 0) {
        return CV_OK;
    }

    cv_status status = CV_ENOMEM;
    float *plane = malloc(n * sizeof *plane);
    float *half = malloc(n * sizeof *half);
    float *kernel = gaussian_kernel(sigma, radius);
    if (plane == NULL || half == NULL || kernel == NULL) {
        goto done;
    }
    for (size_t i = 0; i < n; i++) {
        plane[i] = image->data[i];
    }

    if (verbose) {
        printf("gaussian_blur: %u rows, radius %u\n", image->height, radius);
    }
    for (uint32_t y = 0; y < image->height; y++) {
        for (uint32_t c = 0; c < image->channels; c++) {
            size_t at = y * row + c;
            blur_line(plane + at, half + at, image->width, image->channels, kernel, radius);
        }
    }
    if (verbose) {
        printf("gaussian_blur: %u columns, radius %u\n", image->width, radius);
    }
    for (size_t at = 0; at < row; at++) {
        blur_line(half + at, plane + at, image->height, row, kernel, radius);
    }

    for (size_t i = 0; i < n; i++) {
        blurred[i] = saturate((int)lrintf(plane[i]));
    }
    status = CV_OK;
done:
    free(kernel);
    free(half);
    free(plane);
    return status;
}

/* --- Sobel edges --------------------------------------------------------------------------------
 */

/* A copy with one repeated pixel around it; the caller frees it. NULL when there is nothing to
   copy, or no memory. */
static cv_image *
padded_copy(const cv_image *gray)
{
    if (pixel_count(gray) == 0) {
        return NULL;
    }
    const uint32_t width = gray->width + 2, height = gray->height + 2;
    cv_image *padded = malloc(sizeof *padded + (size_t)width * height);
    if (padded == NULL) {
        return NULL;
    }
    *padded = (cv_image){(uint8_t *)(padded + 1), width, height, 1};
    for (uint32_t y = 0; y < height; y++) {
        uint32_t from = y == 0 ? 0 : y > gray->height ? gray->height - 1 : y - 1;
        const uint8_t *in = gray->data + (size_t)from * gray->width;
        uint8_t *out = padded->data + (size_t)y * width;
        out[0] = in[0];
        memcpy(out + 1, in, gray->width);
        out[width - 1] = in[gray->width - 1];
    }
    return padded;
}

cv_status
cv_sobel_edges(const cv_image *gray, uint8_t *edges, bool verbose)
{
    if (gray->channels != 1) {
        return CV_ECHANNELS;
    }
    if (verbose) {
        printf("sobel_edges: %u x %u\n", gray->width, gray->height);
    }
    cv_image *padded = padded_copy(gray);
    const size_t stride = padded->width;
    for (uint32_t y = 0; y < gray->height; y++) {
        const uint8_t *above = padded->data + y * stride;
        const uint8_t *here = above + stride, *below = here + stride;
        for (uint32_t x = 0; x < gray->width; x++) {
            int dx =
                above[x + 2] + 2 * here[x + 2] + below[x + 2] - above[x] - 2 * here[x] - below[x];
            int dy = below[x] + 2 * below[x + 1] + below[x + 2] - above[x] - 2 * above[x + 1] -
                     above[x + 2];
            edges[(size_t)y * gray->width + x] = saturate(abs(dx) + abs(dy));
        }
    }
    free(padded);
    return CV_OK;
}

/* --- Connected components -----------------------------------------------------------------------
 */

static int32_t
find_root(int32_t *parent, int32_t label)
{
    while (parent[label] != label) {
        label = parent[label] = parent[parent[label]];
    }
    return label;
}

/* Joins two components, 0 being none; the smaller label, met earlier, stays the root. */
static int32_t
join(int32_t *parent, int32_t a, int32_t b)
{
    if (a == 0 || b == 0) {
        return a + b;
    }
    a = find_root(parent, a);
    b = find_root(parent, b);
    if (a > b) {
        int32_t swap = a;
        a = b;
        b = swap;
    }
    parent[b] = a;
    return a;
}

cv_status
cv_connected_components(const cv_image *gray, int threshold, int32_t *labels, uint32_t *count,
                        bool verbose)
{
    CV_ASSERT(threshold >= 0 && threshold <= 255);
    if (gray->channels != 1) {
        return CV_ECHANNELS;
    }
    const uint32_t width = gray->width, height = gray->height;
    /* A new label needs four dark neighbours, so a 2 x 2 block starts one at most. */
    const size_t most = ((size_t)width / 2 + 1) * ((size_t)height / 2 + 1) + 1;
    int32_t *parent = malloc(most * sizeof *parent);
    if (parent == NULL) {
        return CV_ENOMEM;
    }

    parent[0] = 0;
    int32_t next = 1;
    for (uint32_t y = 0; y < height; y++) {
        const uint8_t *in = gray->data + (size_t)y * width;
        int32_t *here = labels + (size_t)y * width;
        const int32_t *above = y > 0 ? here - width : NULL;
        for (uint32_t x = 0; x < width; x++) {
            int32_t label = 0;
            if (in[x] > threshold) {
                label = x > 0 ? here[x - 1] : 0;
                if (above != NULL) {
                    label = join(parent, label, x > 0 ? above[x - 1] : 0);
                    label = join(parent, label, above[x]);
                    label = join(parent, label, x + 1 < width ? above[x + 1] : 0);
                }
                if (label == 0) {
                    parent[next] = next;
                    label = next++;
                }
            }
            here[x] = label;
        }
    }
    if (verbose) {
        printf("connected_components: %d provisional labels\n", next - 1);
    }

    /* Roots come before their members, so one sweep gives consecutive final labels. */
    int32_t final = 0;
    for (int32_t label = 1; label < next; label++) {
        parent[label] = parent[label] == label ? ++final : parent[parent[label]];
    }
    for (size_t i = 0, n = pixel_count(gray); i < n; i++) {
        labels[i] = parent[labels[i]];
    }
    free(parent);
    *count = (uint32_t) final;
    return CV_OK;
}

void
cv_measure_regions(const int32_t *labels, uint32_t width, uint32_t height, uint32_t count,
                   cv_region *regions)
{
    for (uint32_t i = 0; i < count; i++) {
        regions[i] = (cv_region){.left = width, .top = height};
    }
    for (uint32_t y = 0; y < height; y++) {
        for (uint32_t x = 0; x < width; x++) {
            int32_t label = labels[(size_t)y * width + x];
            if (label == 0) {
                continue;
            }
            cv_region *region = &regions[label - 1];
            region->area++;
            region->left = x < region->left ? x : region->left;
            region->right = x > region->right ? x : region->right;
            region->top = y < region->top ? y : region->top;
            region->bottom = y; /* rows only go down */
            region->sum_x += x;
            region->sum_y += y;
        }
    }
}

void
cv_invert(uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)~bytes[i];
    }
}
