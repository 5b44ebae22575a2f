# %% [markdown]
# # Round cells
#
# A picture of overlapping discs is made, thresholded and parted; each disc is measured.
# %%
import matplotlib.pyplot as plt
import numpy as np
from skimage import color, draw, exposure, feature, filters, measure, morphology, segmentation, transform, util
# %%
rng = np.random.default_rng(5)
picture = np.full((120, 160), 0.2)
for row, column, radius in [(30, 30, 15), (40, 52, 14), (80, 40, 20), (60, 110, 24), (95, 125, 18)]:
    rows, columns = draw.disk((row, column), radius, shape=picture.shape)
    picture[rows, columns] = 0.8
noisy = np.clip(picture + rng.normal(0, 0.05, picture.shape), 0, 1)
noisy.shape, noisy.dtype, round(float(noisy.mean()), 3)
# %%
smooth = filters.gaussian(noisy, sigma=1)
threshold = filters.threshold_otsu(smooth)
mask = morphology.opening(smooth > threshold, morphology.disk(2))
print(round(float(threshold), 2), int(mask.sum()))
# %%
plt.figure(figsize=(3, 2))
plt.imshow(mask, cmap="gray")
plt.show()
# %%
labels = measure.label(mask)
labels.max(), measure.euler_number(mask)
# %%
edges = filters.sobel(smooth)
parted = segmentation.watershed(edges, measure.label(morphology.erosion(mask, morphology.disk(11))), mask=mask)
int(parted.max())
# %%
for region in measure.regionprops(parted):
    print(region.label, int(region.area), tuple(int(x) for x in region.bbox), round(float(region.eccentricity), 2))
# %%
table = measure.regionprops_table(parted, properties=("label", "area"))
list(table), table["area"].shape
# %%
over = color.label2rgb(parted, noisy, bg_label=0)
over.shape, over.dtype
# %%
half = transform.resize(noisy, (60, 80), anti_aliasing=True)
equal = exposure.equalize_hist(half)
half.shape, round(float(equal.mean()), 2), util.img_as_ubyte(half).dtype
# %%
try:
    transform.warp(noisy, "no map")
except Exception as error:
    print(type(error).__name__)
# %%
matrix = transform.SimilarityTransform(scale=2, translation=(3, 4))
matrix([[1, 1]]), matrix.inverse([[5, 6]]).round(6)
# %%
len(feature.canny(noisy, sigma=3).nonzero()[0]) > 100, len(measure.find_contours(smooth, 0.5))
