"""The renderer in plain NumPy float64, every triangle at every pixel."""

import numpy as np


def pixel_centres(size):
    height, width = size
    x = (2 * np.arange(width) + 1) / width - 1
    y = (2 * np.arange(height) + 1) / height - 1
    return np.meshgrid(x, y)


def rasterize(projected, faces, size):
    """Triangle, barycentrics and depth; -1, 0 and infinity where nothing is."""
    x, y = pixel_centres(size)
    triangle = np.full(size, -1)
    barycentrics = np.zeros((*size, 3))
    depth = np.full(size, np.inf)
    for index, face in enumerate(faces):
        a, b, c = np.asarray(projected, np.float64)[face]
        if not np.isfinite([a, b, c]).all():
            continue
        sides = np.stack(
            [
                (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])
                for p, q in ((b, c), (c, a), (a, b))
            ],
            -1,
        )
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        weights = sides / area
        z = weights @ np.array([a[2], b[2], c[2]])
        nearer = (weights >= 0).all(-1) & (z < depth)
        triangle[nearer], depth[nearer], barycentrics[nearer] = index, z[nearer], weights[nearer]
    return triangle, barycentrics, depth


def project(vertices, camera, image_from_crop, size):
    scale, shift_x, shift_y = np.asarray(camera, np.float64)
    vertices = np.asarray(vertices, np.float64)
    x, y = scale * (vertices[:, 0] + shift_x), -scale * (vertices[:, 1] + shift_y)
    crop = np.stack([(x + 1) / 2 * 224, (y + 1) / 2 * 224, np.ones_like(x)], -1)
    image = crop @ np.asarray(image_from_crop, np.float64).T
    height, width = size
    return np.stack(
        [image[:, 0] / width * 2 - 1, image[:, 1] / height * 2 - 1, -scale * vertices[:, 2]], -1
    )


def vertex_normals(vertices, faces):
    a, b, c = (np.asarray(vertices, np.float64)[faces[:, corner]] for corner in range(3))
    sums = np.zeros_like(vertices, np.float64)
    np.add.at(sums, faces.ravel(), np.repeat(np.cross(b - a, c - a), 3, axis=0))
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-300)


def shade(normals, light):
    x, y, z = np.moveaxis(normals, -1, 0)
    shading = np.zeros(normals.shape)
    for coefficients, scale, basis in zip(
        np.asarray(light, np.float64),
        [0.282095] + 3 * [1.023327] + 3 * [0.858086] + [0.429043, 0.247708],
        [1 + 0 * x, x, y, z, x * y, x * z, y * z, x * x - y * y, 3 * z * z - 1],
        strict=True,
    ):
        shading += (180 / 255) * scale * basis[..., None] * coefficients
    return np.clip(shading, 0, 1)


def render(vertices, faces, camera, light, image_from_crop, size):
    """Triangle, normals and shading of one head."""
    projected = project(vertices, camera, image_from_crop, size)
    triangle, barycentrics, depth = rasterize(projected, faces, size)

    def interpolated(attributes):
        return np.einsum("hwic,hwi->hwc", attributes[faces[triangle]], barycentrics)

    normals = interpolated(vertex_normals(vertices, faces))
    turned_away = interpolated(vertex_normals(projected, faces))[..., 2] >= 0.15
    shading = np.where(((triangle < 0) | turned_away)[..., None], 0, shade(normals, light))
    return triangle, normals, depth, shading, turned_away
