"""Pillow, isolated and used as in its tutorial; numpy is that of the session."""

import io

import numpy as np
from behaviour.harness import both, raises, worlds  # noqa: F401


def picture(image):
    im = image.new("RGB", (40, 30), (200, 100, 50))
    im.paste((0, 0, 255), (5, 5, 20, 20))
    return im


@both
def test_images(load):
    load("PIL")
    Image = load("PIL.Image")
    im = picture(Image)
    small = im.resize((8, 6))
    gray = im.convert("L")
    box = im.crop((0, 0, 10, 10))
    im.paste(box.rotate(90), (20, 10))
    r, g, b = im.split()
    return (
        im.size, im.mode, im.format, im.width, small.size, gray.mode, gray.getpixel((6, 6)), box.tobytes(), im.getbbox(), im.getpixel((6, 6)),
        small.tobytes(), Image.merge("RGB", (b, g, r)).getpixel((6, 6)), im.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes(),
        im.histogram()[:5], gray.point(lambda x: x // 2).tobytes(), Image.blend(im, im, 0.5) == im, list(im.getdata())[:2], im.getextrema(),
        Image.fromarray(np.zeros((4, 5), "uint8")).size, isinstance(im, Image.Image), im.copy() == im, bool(im.info), im.getcolors()[0],
    )  # fmt: skip


@both
def test_files(load, tmp_path):
    load("PIL")
    Image = load("PIL.Image")
    im = picture(Image)
    path = tmp_path / "a.png"
    im.save(path)
    out = io.BytesIO()
    im.save(out, format="PNG")
    with Image.open(path) as one:
        first = (one.format, one.size, one.tobytes() == im.tobytes())
    with open(path, "rb") as file:
        second = Image.open(file).convert("RGB").tobytes() == im.tobytes()
    out.seek(0)
    third = Image.open(out)
    third.load()
    jpeg = io.BytesIO()
    im.save(jpeg, "JPEG", quality=80)
    return first, second, third.tobytes() == im.tobytes(), out.getvalue()[:4], jpeg.getvalue()[:2], im._repr_png_()[:4]


@both
def test_with_numpy_of_the_session(load):
    load("PIL")
    Image = load("PIL.Image")
    im = picture(Image)
    a = np.asarray(im)
    changed = np.array(im)
    changed[0, 0] = 255
    pixels = im.load()
    pixels[1, 1] = (1, 2, 3)
    im.putpixel((2, 2), (4, 5, 6))
    return a.shape, str(a.dtype), a[6, 6].tolist(), Image.fromarray(changed).getpixel((0, 0)), pixels[1, 1], im.getpixel((2, 2)), np.mean(im).round(3), im.tobytes() == bytes(np.asarray(im))


@both
def test_drawing(load):
    load("PIL")
    Image = load("PIL.Image")
    ImageDraw, ImageFilter, ImageOps, ImageEnhance = (load("PIL." + n) for n in ("ImageDraw", "ImageFilter", "ImageOps", "ImageEnhance"))
    im = picture(Image)
    draw = ImageDraw.Draw(im)
    draw.line((0, 0) + im.size, fill=128)
    draw.rectangle([2, 2, 9, 9], outline="red")
    draw.text((3, 3), "hi", fill=(255, 255, 255))
    draw.polygon([(1, 1), (9, 4), (4, 9)], fill="green")
    return im.tobytes(), im.filter(ImageFilter.BLUR).tobytes(), ImageOps.invert(im).getpixel((0, 5)), ImageEnhance.Contrast(im).enhance(1.5).tobytes(), draw.textlength("hi")


@both
def test_errors(load):
    load("PIL")
    Image = load("PIL.Image")
    im = picture(Image)
    errors = [
        raises(Image.open, "/no/such.png"), raises(Image.open, io.BytesIO(b"xx")), raises(im.getpixel, (99, 99)), raises(im.convert, "nope"),
        raises(im.resize, "x"), raises(im.save, io.BytesIO()), raises(lambda: im.nope),
    ]  # fmt: skip
    return [(type(e).__name__, str(e).split("<")[0]) for e in errors]
