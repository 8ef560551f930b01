"""Warp kernels of the textured-mesh renderer: z-buffer, shading, noise. One source: CPU and CUDA.

None of them has a gradient (`enable_backward=False` per kernel: the global switch would also turn
off the gradients of other kernels in the process). Called by `raycast`, `baking` and `paint` in
this package.

Legend: B images, V vertices, F triangles, S = 2 x image edge (supersampled), L texture layers.
"""

# a kernel is Warp code in Python syntax: Warp checks its types, mypy does not know them
# mypy: ignore-errors
from __future__ import annotations

import warp as wp

# a z-buffer entry is (depth bits << 32) | triangle: positive floats sort like their bits
EMPTY = wp.constant(wp.uint64(2**64 - 1))
NEAR = wp.constant(0.05)


@wp.struct
class View:
    """One camera, in supersampled pixels."""

    rotation: wp.mat33
    translation: wp.vec3
    focal: wp.float32
    principal_x: wp.float32
    principal_y: wp.float32


@wp.struct
class Lamp:
    """A directional light in world axes, and hemispheric ambient light."""

    toward: wp.vec3
    strength: wp.float32
    ambient: wp.float32


@wp.kernel(enable_backward=False)
def skin_vertices(
    rest: wp.array(dtype=wp.vec3),  # [V]
    rest_normals: wp.array(dtype=wp.vec3),  # [V]
    blended: wp.array3d(dtype=wp.float32),  # [B, V, 12] skinning weights @ bones
    views: wp.array(dtype=View),  # [B]
    points: wp.array2d(dtype=wp.vec3),  # [B, V] out, camera axes
    normals: wp.array2d(dtype=wp.vec3),  # [B, V] out, world axes, not of unit length
) -> None:
    item, vertex = wp.tid()
    linear = wp.mat33(
        blended[item, vertex, 0], blended[item, vertex, 1], blended[item, vertex, 2],
        blended[item, vertex, 4], blended[item, vertex, 5], blended[item, vertex, 6],
        blended[item, vertex, 8], blended[item, vertex, 9], blended[item, vertex, 10],
    )  # fmt: skip
    shift = wp.vec3(blended[item, vertex, 3], blended[item, vertex, 7], blended[item, vertex, 11])
    world = linear * rest[vertex] + shift
    points[item, vertex] = views[item].rotation * world + views[item].translation
    normals[item, vertex] = linear * rest_normals[vertex]


@wp.func
def barycentric(a: wp.vec3, b: wp.vec3, c: wp.vec3, hit: wp.vec3) -> wp.vec3:
    normal = wp.cross(b - a, c - a)
    scale = 1.0 / wp.dot(normal, normal)
    of_b = wp.dot(wp.cross(hit - a, c - a), normal) * scale
    of_c = wp.dot(wp.cross(b - a, hit - a), normal) * scale
    return wp.vec3(1.0 - of_b - of_c, of_b, of_c)


@wp.func
def texel(
    textures: wp.array4d(dtype=wp.uint8), layer: wp.int32, row: wp.int32, column: wp.int32
) -> wp.vec4:
    return wp.vec4(
        wp.float32(textures[layer, row, column, 0]),
        wp.float32(textures[layer, row, column, 1]),
        wp.float32(textures[layer, row, column, 2]),
        wp.float32(textures[layer, row, column, 3]),
    )


@wp.func
def lookup(
    textures: wp.array4d(dtype=wp.uint8),  # [L, T, T, 4], row 0 is v = 1
    uv: wp.array3d(dtype=wp.float32),  # [F, 3, 2]
    layer: wp.int32,
    face: wp.int32,
    weights: wp.vec3,
) -> wp.vec4:  # 0..255
    """Bilinear texture lookup."""
    size = textures.shape[1]
    u = weights[0] * uv[face, 0, 0] + weights[1] * uv[face, 1, 0] + weights[2] * uv[face, 2, 0]
    v = weights[0] * uv[face, 0, 1] + weights[1] * uv[face, 1, 1] + weights[2] * uv[face, 2, 1]
    x = wp.clamp(u * wp.float32(size) - 0.5, 0.0, wp.float32(size) - 1.001)
    y = wp.clamp((1.0 - v) * wp.float32(size) - 0.5, 0.0, wp.float32(size) - 1.001)
    column = wp.int32(x)
    row = wp.int32(y)
    right = x - wp.float32(column)
    low = y - wp.float32(row)
    above = (1.0 - right) * texel(textures, layer, row, column) + right * texel(
        textures, layer, row, column + 1
    )
    below = (1.0 - right) * texel(textures, layer, row + 1, column) + right * texel(
        textures, layer, row + 1, column + 1
    )
    return (1.0 - low) * above + low * below


@wp.kernel(enable_backward=False)
def fill_z_buffer(
    points: wp.array2d(dtype=wp.vec3),  # [B, V] camera axes
    faces: wp.array2d(dtype=wp.int32),  # [F, 3]
    layers: wp.array(dtype=wp.int32),  # [F]
    uv: wp.array3d(dtype=wp.float32),  # [F, 3, 2]
    textures: wp.array4d(dtype=wp.uint8),  # [L, T, T, 4]
    cutout: wp.array(dtype=wp.uint8),  # [L] 1: texels with alpha < 1/2 are holes
    views: wp.array(dtype=View),  # [B]
    height: wp.int32,  # supersampled
    width: wp.int32,
    z_buffer: wp.array3d(dtype=wp.uint64),  # [B, height, width] in and out
) -> None:
    """Every triangle competes for the pixels whose centres it covers. Triangles that reach behind
    the near plane are left out: cameras stand outside the body."""
    item, face = wp.tid()
    view = views[item]
    a = points[item, faces[face, 0]]
    b = points[item, faces[face, 1]]
    c = points[item, faces[face, 2]]
    if wp.min(a[2], wp.min(b[2], c[2])) < NEAR:
        return
    ax = view.focal * a[0] / a[2] + view.principal_x
    ay = view.focal * a[1] / a[2] + view.principal_y
    bx = view.focal * b[0] / b[2] + view.principal_x
    by = view.focal * b[1] / b[2] + view.principal_y
    cx = view.focal * c[0] / c[2] + view.principal_x
    cy = view.focal * c[1] / c[2] + view.principal_y
    # pixel (column, row) is covered when its centre (+0.5) is
    left = wp.max(wp.int32(wp.ceil(wp.max(wp.min(ax, wp.min(bx, cx)), -1.0) - 0.5)), 0)
    top = wp.max(wp.int32(wp.ceil(wp.max(wp.min(ay, wp.min(by, cy)), -1.0) - 0.5)), 0)
    right = wp.int32(wp.floor(wp.min(wp.max(ax, wp.max(bx, cx)), wp.float32(width)) - 0.5))
    bottom = wp.int32(wp.floor(wp.min(wp.max(ay, wp.max(by, cy)), wp.float32(height)) - 0.5))
    right = wp.min(right, width - 1)
    bottom = wp.min(bottom, height - 1)
    if right < left or bottom < top:
        return
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    if wp.abs(area) < 1.0e-9:
        return
    inverse = 1.0 / area
    # 1/z is linear in the picture, so edge functions / z give perspective-correct weights
    for row in range(top, bottom + 1):
        y = wp.float32(row) + 0.5
        for column in range(left, right + 1):
            x = wp.float32(column) + 0.5
            of_a = ((cx - bx) * (y - by) - (cy - by) * (x - bx)) * inverse
            of_b = ((ax - cx) * (y - cy) - (ay - cy) * (x - cx)) * inverse
            of_c = 1.0 - of_a - of_b
            if of_a >= 0.0 and of_b >= 0.0 and of_c >= 0.0:
                wa = of_a / a[2]
                wb = of_b / b[2]
                wc = of_c / c[2]
                depth = 1.0 / (wa + wb + wc)
                key = (wp.uint64(wp.cast(depth, wp.uint32)) << wp.uint64(32)) | wp.uint64(face)
                if key < z_buffer[item, row, column]:
                    solid = wp.int32(1)
                    if cutout[layers[face]] != wp.uint8(0):
                        weights = wp.vec3(wa * depth, wb * depth, wc * depth)
                        colour = lookup(textures, uv, layers[face], face, weights)
                        if colour[3] < 127.5:
                            solid = wp.int32(0)
                    if solid == 1:
                        wp.atomic_min(z_buffer, item, row, column, key)


@wp.kernel(enable_backward=False)
def shade(
    points: wp.array2d(dtype=wp.vec3),  # [B, V] camera axes
    normals: wp.array2d(dtype=wp.vec3),  # [B, V] world axes
    faces: wp.array2d(dtype=wp.int32),  # [F, 3]
    layers: wp.array(dtype=wp.int32),  # [F]
    uv: wp.array3d(dtype=wp.float32),  # [F, 3, 2]
    textures: wp.array4d(dtype=wp.uint8),  # [L, T, T, 4]
    views: wp.array(dtype=View),  # [B]
    lamps: wp.array(dtype=Lamp),  # [B]
    samples: wp.int32,  # supersampling factor per axis
    z_buffer: wp.array3d(dtype=wp.uint64),  # [B, samples * H, samples * W]
    rgba: wp.array3d(dtype=wp.vec4),  # [B, H, W] out, premultiplied
    depths: wp.array3d(dtype=wp.float32),  # [B, H, W] out, z of the nearest subpixel, inf if none
) -> None:
    """Averages the shaded subpixels of each pixel."""
    item, row, column = wp.tid()
    view = views[item]
    lamp = lamps[item]
    total = wp.vec4(0.0, 0.0, 0.0, 0.0)
    nearest = wp.float32(wp.inf)
    for sample in range(samples * samples):
        x = column * samples + sample % samples
        y = row * samples + sample / samples
        key = z_buffer[item, y, x]
        if key != EMPTY:
            face = wp.int32(wp.uint32(key & wp.uint64(4294967295)))
            depth = wp.cast(wp.uint32(key >> wp.uint64(32)), wp.float32)
            hit = depth * wp.vec3(
                (wp.float32(x) + 0.5 - view.principal_x) / view.focal,
                (wp.float32(y) + 0.5 - view.principal_y) / view.focal,
                1.0,
            )
            i = faces[face, 0]
            j = faces[face, 1]
            k = faces[face, 2]
            a = points[item, i]
            b = points[item, j]
            c = points[item, k]
            weights = barycentric(a, b, c, hit)
            normal = wp.normalize(
                weights[0] * normals[item, i]
                + weights[1] * normals[item, j]
                + weights[2] * normals[item, k]
            )
            # the inner side of an open shell: turned towards the viewer, and darker
            inside = wp.float32(1.0)
            if wp.dot(wp.cross(b - a, c - a), hit) > 0.0:
                normal = -normal
                inside = 0.6
            lambert = wp.max(wp.dot(normal, lamp.toward), 0.0)
            sky = 0.5 + 0.5 * normal[1]
            light = lamp.ambient * (0.75 + 0.25 * sky) + lamp.strength * lambert
            colour = lookup(textures, uv, layers[face], face, weights) / 255.0
            tone = light * inside
            total = total + wp.vec4(
                wp.min(colour[0] * tone, 1.0),
                wp.min(colour[1] * tone, 1.0),
                wp.min(colour[2] * tone, 1.0),
                1.0,
            )
            nearest = wp.min(nearest, depth)
    rgba[item, row, column] = total / wp.float32(samples * samples)
    depths[item, row, column] = nearest


@wp.kernel(enable_backward=False)
def value_noise(
    lattice: wp.array3d(dtype=wp.float32),  # [E, E, E], repeated in all directions
    points: wp.array(dtype=wp.vec3),  # [N] in lattice cells
    values: wp.array(dtype=wp.float32),  # [N] out
) -> None:
    """Smoothly interpolated lattice values, for painting textures."""
    index = wp.tid()
    edge = lattice.shape[0]
    point = points[index]
    x = wp.floor(point[0])
    y = wp.floor(point[1])
    z = wp.floor(point[2])
    right = point[0] - x
    up = point[1] - y
    ahead = point[2] - z
    right = right * right * (3.0 - 2.0 * right)
    up = up * up * (3.0 - 2.0 * up)
    ahead = ahead * ahead * (3.0 - 2.0 * ahead)
    i = (wp.int32(x) % edge + edge) % edge
    j = (wp.int32(y) % edge + edge) % edge
    k = (wp.int32(z) % edge + edge) % edge
    i2 = (i + 1) % edge
    j2 = (j + 1) % edge
    k2 = (k + 1) % edge
    near = wp.lerp(
        wp.lerp(lattice[i, j, k], lattice[i2, j, k], right),
        wp.lerp(lattice[i, j2, k], lattice[i2, j2, k], right),
        up,
    )
    far = wp.lerp(
        wp.lerp(lattice[i, j, k2], lattice[i2, j, k2], right),
        wp.lerp(lattice[i, j2, k2], lattice[i2, j2, k2], right),
        up,
    )
    values[index] = wp.lerp(near, far, ahead)
