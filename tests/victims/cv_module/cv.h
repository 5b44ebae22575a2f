/* A small computer-vision library: 8-bit images in, 8-bit images and labels out.
 *
 * It is a victim: it works, and it has the memory bugs that such libraries have. README.md lists
 * them. They are honest: nothing here knows that a test is watching.
 */
#ifndef CV_H
#define CV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows follow each other without padding; the channels of a pixel are neighbours. */
typedef struct {
    uint8_t *data;
    uint32_t width, height, channels;
} cv_image;

typedef struct {
    uint32_t area;
    uint32_t left, top, right, bottom; /* right and bottom are inclusive */
    double sum_x, sum_y;               /* centroid = sum / area */
} cv_region;

typedef enum {
    CV_OK = 0,
    CV_ENOMEM,
    CV_EFORMAT,   /* not an 8-bit image */
    CV_ECHANNELS, /* wrong number of channels */
    CV_EARGUMENT, /* a number out of its range */
} cv_status;

/* The outputs are the caller's and hold width * height (* channels, for the blur) elements.
   Progress goes to stdout when verbose. */
cv_status cv_grayscale(const cv_image *rgb, uint8_t *gray, bool verbose);
cv_status cv_gaussian_blur(const cv_image *image, double sigma, uint8_t *blurred, bool verbose);
cv_status cv_sobel_edges(const cv_image *gray, uint8_t *edges, bool verbose);

/* Labels the 8-connected components of pixels brighter than threshold, 1 .. *count in the order in
   which a scan by rows meets them; 0 is background. The threshold must be in 0 .. 255. */
cv_status cv_connected_components(const cv_image *gray, int threshold, int32_t *labels,
                                  uint32_t *count, bool verbose);

/* Measures the components: regions[i] describes label i + 1. */
void cv_measure_regions(const int32_t *labels, uint32_t width, uint32_t height, uint32_t count,
                        cv_region *regions);

void cv_invert(uint8_t *bytes, size_t size);

#endif
