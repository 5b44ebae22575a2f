# %% [markdown]
# # Counting coins
#
# A picture is made, blurred and thresholded; the coins in it are found by their contours, and marked.
# %%
import cv2
import matplotlib.pyplot as plt
import numpy as np
# %%
rng = np.random.default_rng(7)
picture = np.full((200, 300), 40, np.uint8)
coins = [(60, 60, 25), (150, 70, 30), (240, 60, 20), (80, 140, 35), (200, 140, 28)]
for x, y, radius in coins:
    cv2.circle(picture, (x, y), radius, 200, thickness=-1)
picture = cv2.add(picture, rng.integers(0, 30, picture.shape, np.uint8))
picture.shape, picture.dtype, int(picture.sum())
# %%
plt.figure(figsize=(3, 2))
plt.imshow(picture, cmap="gray")
plt.title("before")
plt.show()
# %%
blurred = cv2.GaussianBlur(picture, (7, 7), 0)
threshold, binary = cv2.threshold(blurred, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
print("threshold", threshold, "white", int((binary == 255).sum()))
# %%
contours, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
len(contours)
# %%
found = []
for contour in contours:
    (x, y), radius = cv2.minEnclosingCircle(contour)
    moments = cv2.moments(contour)
    found.append((round(x), round(y), round(radius), round(moments["m00"])))
sorted(found)
# %%
marked = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
cv2.drawContours(marked, contours, -1, (0, 0, 255), 2)
assert marked[:, :, 2].max() == 255
plt.figure(figsize=(3, 2))
plt.imshow(marked[:, :, ::-1]);
# %%
# A wrong argument is an ordinary exception.
try:
    cv2.GaussianBlur(picture, (6, 6), 0)
except cv2.error as error:
    print(type(error).__name__, "ksize" in str(error), error.func)
# %%
ok, encoded = cv2.imencode(".png", marked)
decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
ok, np.array_equal(decoded, marked), decoded.shape
# %%
orb = cv2.ORB_create(nfeatures=50)
keypoints, descriptors = orb.detectAndCompute(picture, None)
len(keypoints), descriptors.shape, sorted(round(k.size, 1) for k in keypoints)[:3]
