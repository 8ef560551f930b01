"""Warp kernels of the fused renderer: one source for CPU and CUDA.

The renderer's adjoint is written by hand (`march_backward`), because Warp's own differentiation is
wrong for loops of data-dependent length. `posegen_ray.subjects.warp_cache` compiles this module.

A ray enters the posed cage through a triangle and leaves it through another. At either end the
cage's vertices give an affine map back to the T-pose, a *chart* (b: barycentrics of that point):

    canonical(t) = rest(b) + inverse(b) (origin + t direction - point(b))

In between, the two charts are blended smoothly (3 s^2 - 2 s^3, s: share of the way). Where entry
and exit belong to different limbs (cages overlap), the entry's chart is kept.

Samples lie at depths t = (k + 1/2) step for whole k, whatever the entry's depth.

Knows nothing about torch.
"""

# float(1.0) declares a variable that a loop may change; a bare 1.0 would be a constant to Warp
# ruff: noqa: UP018
# mypy: disable-error-code="no-untyped-def,valid-type,no-any-return"
import warp as wp

from posegen_ray.subjects.grid_kernels import (
    Grid,
    find_cell,
    interpolate,
    pull_back_place,
    pull_back_values,
)

wp.set_module_options({"enable_backward": False})

LAYERS = 4  # entries (and exits) kept per pixel
LAYERS_CONSTANT = wp.constant(LAYERS)
EMPTY = wp.constant(wp.uint64(2**64 - 1))  # no entry: the largest key
LOW_HALF = wp.constant(wp.uint64(2**32 - 1))
NEAR = wp.constant(0.05)  # metres; triangles nearer than this are not drawn
SAME_LIMB = wp.constant(0.12)  # metres that the two charts may be apart at the exit to be blended
SHORTEST = wp.constant(1.0e-4)  # metres; shorter passages are not blended
GRAZING = wp.constant(0.02)  # cosine below which the point of intersection counts as fixed


# --- the cage's triangles -> sorted entries and exits per pixel -----------------------------------


@wp.func
def edge_side(
    first: int, second: int, ax: float, ay: float, bx: float, by: float, px: float, py: float
):
    """Twice the signed area of (a, b, p); exactly opposite for the edge's two triangles."""
    if first < second:
        return (bx - ax) * (py - ay) - (by - ay) * (px - ax)
    return -((ax - bx) * (py - by) - (ay - by) * (px - bx))


@wp.kernel
def rasterise(
    points: wp.array2d(dtype=wp.vec3),  # [B, C] camera space
    faces: wp.array2d(dtype=wp.int32),  # [T, 3]
    focal: wp.array(dtype=float),  # [B]
    principal: wp.array(dtype=wp.vec2),  # [B]
    box: wp.array(dtype=wp.vec4i),  # [B] x, y, width, height of the pixels drawn
    start: wp.array(dtype=wp.int32),  # [B] row of the box's first pixel in `front` and `back`
    front: wp.array2d(dtype=wp.uint64),  # [pixels, LAYERS] depth bits and triangle, nearest first
    back: wp.array2d(dtype=wp.uint64),
):
    image, face = wp.tid()
    ia = faces[face, 0]
    ib = faces[face, 1]
    ic = faces[face, 2]
    a = points[image, ia]
    b = points[image, ib]
    c = points[image, ic]
    if a[2] < NEAR or b[2] < NEAR or c[2] < NEAR:
        return
    normal = wp.cross(b - a, c - a)
    height = wp.dot(normal, a)
    f = focal[image]
    centre = principal[image]
    ax = f * a[0] / a[2] + centre[0]
    ay = f * a[1] / a[2] + centre[1]
    bx = f * b[0] / b[2] + centre[0]
    by = f * b[1] / b[2] + centre[1]
    cx = f * c[0] / c[2] + centre[0]
    cy = f * c[1] / c[2] + centre[1]
    # clamped before the conversion to int, which is undefined for huge values
    area = box[image]
    left = float(area[0])
    top = float(area[1])
    right = float(area[0] + area[2] - 1)
    bottom = float(area[1] + area[3] - 1)
    x_low = int(wp.clamp(wp.ceil(wp.min(ax, wp.min(bx, cx)) - 0.5), left, right + 1.0))
    x_high = int(wp.clamp(wp.floor(wp.max(ax, wp.max(bx, cx)) - 0.5), left - 1.0, right))
    y_low = int(wp.clamp(wp.ceil(wp.min(ay, wp.min(by, cy)) - 0.5), top, bottom + 1.0))
    y_high = int(wp.clamp(wp.floor(wp.max(ay, wp.max(by, cy)) - 0.5), top - 1.0, bottom))
    facing = height < 0.0
    # in pixels (y down) a triangle that faces the camera runs clockwise
    sign = float(1.0)
    if facing:
        sign = float(-1.0)
    for y in range(y_low, y_high + 1):
        py = float(y) + 0.5
        for x in range(x_low, x_high + 1):
            px = float(x) + 0.5
            if (
                sign * edge_side(ib, ic, bx, by, cx, cy, px, py) >= 0.0
                and sign * edge_side(ic, ia, cx, cy, ax, ay, px, py) >= 0.0
                and sign * edge_side(ia, ib, ax, ay, bx, by, px, py) >= 0.0
            ):
                ray = wp.vec3((px - centre[0]) / f, (py - centre[1]) / f, 1.0)
                depth = height / wp.dot(normal, ray)
                # positive floats order like their bits: smaller key = nearer
                key = (wp.uint64(wp.cast(depth, wp.uint32)) << wp.uint64(32)) | wp.uint64(face)
                pixel = start[image] + (y - area[1]) * area[2] + (x - area[0])
                for layer in range(LAYERS_CONSTANT):
                    old = EMPTY
                    if facing:
                        old = wp.atomic_min(front, pixel, layer, key)
                    else:
                        old = wp.atomic_min(back, pixel, layer, key)
                    key = wp.max(old, key)
                    if key == EMPTY:
                        break


# --- marching -----------------------------------------------------------------------------------


@wp.struct
class Shell:
    """The posed cage of every image of a batch, and the marching constants."""

    points: wp.array2d(dtype=wp.vec3)  # [B, C] world
    inverse: wp.array2d(dtype=wp.mat33)  # [B, C]
    rest: wp.array(dtype=wp.vec3)  # [C]
    faces: wp.array2d(dtype=wp.int32)  # [T, 3]
    step: float
    thickness: float
    layers: int
    early_stop: float


@wp.struct
class Chart:
    start: wp.vec3  # place in the grid (cells) at t = 0
    velocity: wp.vec3  # its change with t
    inverse: wp.mat33
    offset: wp.vec3  # ray origin - point(b)
    a: int
    b: int
    c: int
    share_a: float
    share_b: float
    share_c: float
    depth: float


@wp.struct
class Passage:
    """One way through the cage: samples k = first .. last."""

    entry: Chart
    exit: Chart
    first: int
    last: int
    rate: float  # 1 / length in depth; 0: the entry's chart is kept


@wp.func
def depth_of(key: wp.uint64):
    return wp.cast(wp.uint32(key >> wp.uint64(32)), wp.float32)


@wp.func
def chart_at(
    shell: Shell, grid: Grid, image: int, key: wp.uint64, origin: wp.vec3, direction: wp.vec3
):
    chart = Chart()
    depth = depth_of(key)
    face = int(wp.uint32(key & LOW_HALF))
    chart.a = shell.faces[face, 0]
    chart.b = shell.faces[face, 1]
    chart.c = shell.faces[face, 2]
    pa = shell.points[image, chart.a]
    pb = shell.points[image, chart.b]
    pc = shell.points[image, chart.c]
    hit = origin + depth * direction
    normal = wp.cross(pb - pa, pc - pa)
    area = wp.dot(normal, normal)
    chart.share_b = wp.dot(wp.cross(hit - pa, pc - pa), normal) / area
    chart.share_c = wp.dot(wp.cross(pb - pa, hit - pa), normal) / area
    chart.share_a = 1.0 - chart.share_b - chart.share_c
    chart.inverse = (
        chart.share_a * shell.inverse[image, chart.a]
        + chart.share_b * shell.inverse[image, chart.b]
        + chart.share_c * shell.inverse[image, chart.c]
    )
    rest = (
        chart.share_a * shell.rest[chart.a]
        + chart.share_b * shell.rest[chart.b]
        + chart.share_c * shell.rest[chart.c]
    )
    chart.offset = origin - (chart.share_a * pa + chart.share_b * pb + chart.share_c * pc)
    chart.start = (rest + chart.inverse * chart.offset - grid.low) * grid.cells_per_metre
    chart.velocity = (chart.inverse * direction) * grid.cells_per_metre
    chart.depth = depth
    return chart


@wp.func
def pass_through(
    shell: Shell,
    grid: Grid,
    image: int,
    entry: wp.uint64,
    exit_: wp.uint64,
    origin: wp.vec3,
    direction: wp.vec3,
):
    passage = Passage()
    passage.entry = chart_at(shell, grid, image, entry, origin, direction)
    begin = passage.entry.depth
    end = begin + shell.thickness
    if exit_ != EMPTY:
        out = depth_of(exit_)
        if out < end:
            end = out
            if out > begin + SHORTEST:
                chart = chart_at(shell, grid, image, exit_, origin, direction)
                apart = (chart.start - passage.entry.start) + out * (
                    chart.velocity - passage.entry.velocity
                )
                if wp.length(apart) < SAME_LIMB * grid.cells_per_metre:
                    passage.exit = chart
                    passage.rate = 1.0 / (out - begin)
    passage.first = int(wp.ceil(begin / shell.step - 0.5))
    passage.last = int(wp.floor(end / shell.step - 0.5))
    return passage


@wp.func
def place_at(passage: Passage, t: float):
    place = passage.entry.start + t * passage.entry.velocity
    if passage.rate > 0.0:
        way = (t - passage.entry.depth) * passage.rate
        share = way * way * (3.0 - 2.0 * way)
        place = (1.0 - share) * place + share * (passage.exit.start + t * passage.exit.velocity)
    return place


@wp.kernel
def march(
    image_of: wp.array(dtype=wp.int32),  # [N] image of each ray
    origins: wp.array(dtype=wp.vec3),  # [B]
    directions: wp.array(dtype=wp.vec3),  # [N] z = 1 in camera space
    front: wp.array2d(dtype=wp.uint64),  # [N, LAYERS]
    back: wp.array2d(dtype=wp.uint64),
    shell: Shell,
    grid: Grid,
    rgba: wp.array(dtype=wp.vec4),  # [N] out, premultiplied
):
    ray = wp.tid()
    image = image_of[ray]
    origin = origins[image]
    direction = directions[ray]
    length = wp.length(direction) * shell.step
    light = float(1.0)
    colour = wp.vec3(0.0, 0.0, 0.0)
    for layer in range(shell.layers):
        entry = front[ray, layer]
        if entry == EMPTY or light < shell.early_stop:
            break
        passage = pass_through(shell, grid, image, entry, back[ray, layer], origin, direction)
        for k in range(passage.first, passage.last + 1):
            t = (float(k) + 0.5) * shell.step
            cell = find_cell(grid, place_at(passage, t))
            if cell.r00 >= 0:
                value = interpolate(grid, cell)
                density = grid.density_scale / (1.0 + wp.exp(-value[3]))
                passed = wp.exp(-density * length)
                colour += (light * (1.0 - passed)) * wp.vec3(value[0], value[1], value[2])
                light = light * passed
                if light < shell.early_stop:
                    break
    rgba[ray] = wp.vec4(colour[0], colour[1], colour[2], 1.0 - light)


@wp.struct
class RayGradient:
    origin: wp.vec3
    direction: wp.vec3


@wp.func
def pull_back_chart(
    shell: Shell,
    image: int,
    chart: Chart,
    direction: wp.vec3,
    pull: wp.vec3,  # sum over samples of d(loss)/d(canonical place), per metre
    pull_t: wp.vec3,  # the same, each times its depth
    grad_depth: float,  # d(loss)/d(chart.depth)
    grad_points: wp.array2d(dtype=wp.vec3),
    grad_inverse: wp.array2d(dtype=wp.mat33),
):
    """Gradient of a chart with respect to cage and ray; adds the former, returns the latter."""
    la = shell.inverse[image, chart.a]
    lb = shell.inverse[image, chart.b]
    lc = shell.inverse[image, chart.c]
    pa = shell.points[image, chart.a]
    pb = shell.points[image, chart.b]
    pc = shell.points[image, chart.c]
    grad_inv = wp.outer(pull, chart.offset) + wp.outer(pull_t, direction)
    wp.atomic_add(grad_inverse, image, chart.a, chart.share_a * grad_inv)
    wp.atomic_add(grad_inverse, image, chart.b, chart.share_b * grad_inv)
    wp.atomic_add(grad_inverse, image, chart.c, chart.share_c * grad_inv)
    result = RayGradient()
    result.origin = wp.transpose(chart.inverse) * pull
    result.direction = wp.transpose(chart.inverse) * pull_t
    moved = result.origin
    # the point of intersection moves over the triangle, and along the ray
    normal = wp.cross(pb - pa, pc - pa)
    facing = wp.dot(normal, direction)
    if wp.abs(facing) > GRAZING * wp.length(normal) * wp.length(direction):
        grad_a = wp.dot(
            pull, shell.rest[chart.a] + la * chart.offset - chart.inverse * pa
        ) + wp.dot(pull_t, la * direction)
        grad_b = wp.dot(
            pull, shell.rest[chart.b] + lb * chart.offset - chart.inverse * pb
        ) + wp.dot(pull_t, lb * direction)
        grad_c = wp.dot(
            pull, shell.rest[chart.c] + lc * chart.offset - chart.inverse * pc
        ) + wp.dot(pull_t, lc * direction)
        slide = (
            (grad_b - grad_a) * wp.cross(pc - pa, direction)
            + (grad_c - grad_a) * wp.cross(direction, pb - pa)
            - grad_depth * normal
        ) / facing
        result.origin += slide
        result.direction += chart.depth * slide
        moved += slide
    wp.atomic_add(grad_points, image, chart.a, -chart.share_a * moved)
    wp.atomic_add(grad_points, image, chart.b, -chart.share_b * moved)
    wp.atomic_add(grad_points, image, chart.c, -chart.share_c * moved)
    return result


@wp.kernel
def march_backward(
    image_of: wp.array(dtype=wp.int32),
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    front: wp.array2d(dtype=wp.uint64),
    back: wp.array2d(dtype=wp.uint64),
    shell: Shell,
    grid: Grid,
    rgba: wp.array(dtype=wp.vec4),  # [N] what `march` gave
    grad_rgba: wp.array(dtype=wp.vec4),  # [N]
    to_pose: int,  # 1: add to grad_points, grad_inverse and set grad_origins, grad_directions
    to_field: int,  # 1: add to grad_values
    grad_points: wp.array2d(dtype=wp.vec3),  # [B, C]
    grad_inverse: wp.array2d(dtype=wp.mat33),  # [B, C]
    grad_origins: wp.array(dtype=wp.vec3),  # [N], per ray
    grad_directions: wp.array(dtype=wp.vec3),  # [N]
    grad_values: wp.array(dtype=wp.vec4),  # [M]
):
    ray = wp.tid()
    image = image_of[ray]
    origin = origins[image]
    direction = directions[ray]
    norm = wp.length(direction)
    length = norm * shell.step
    out = rgba[ray]
    grad = grad_rgba[ray]
    grad_colour = wp.vec3(grad[0], grad[1], grad[2])
    # what the light behind the current sample is worth: later samples' colour, less the final alpha
    behind = wp.dot(grad_colour, wp.vec3(out[0], out[1], out[2])) - grad[3] * (1.0 - out[3])
    light = float(1.0)
    grad_length = float(0.0)
    grad_origin = wp.vec3(0.0, 0.0, 0.0)
    grad_direction = wp.vec3(0.0, 0.0, 0.0)
    for layer in range(shell.layers):
        entry = front[ray, layer]
        if entry == EMPTY or light < shell.early_stop:
            break
        passage = pass_through(shell, grid, image, entry, back[ray, layer], origin, direction)
        # sums over samples of d(loss)/d(place) and of t times it, for either chart
        pull = wp.vec3(0.0, 0.0, 0.0)
        pull_t = wp.vec3(0.0, 0.0, 0.0)
        exit_pull = wp.vec3(0.0, 0.0, 0.0)
        exit_pull_t = wp.vec3(0.0, 0.0, 0.0)
        grad_begin = float(0.0)
        grad_end = float(0.0)
        for k in range(passage.first, passage.last + 1):
            t = (float(k) + 0.5) * shell.step
            cell = find_cell(grid, place_at(passage, t))
            if cell.r00 >= 0:
                value = interpolate(grid, cell)
                sigmoid = 1.0 / (1.0 + wp.exp(-value[3]))
                density = grid.density_scale * sigmoid
                passed = wp.exp(-density * length)
                weight = light * (1.0 - passed)
                light = light * passed
                worth = wp.dot(grad_colour, wp.vec3(value[0], value[1], value[2]))
                behind = behind - weight * worth
                grad_depth = light * worth - behind  # d(loss) / d(density * length)
                grad_length += grad_depth * density
                grad_value = wp.vec4(
                    weight * grad[0],
                    weight * grad[1],
                    weight * grad[2],
                    grad_depth * length * density * (1.0 - sigmoid),
                )
                if to_field == 1:
                    pull_back_values(grad_values, cell, grad_value)
                if to_pose == 1:
                    grad_place = pull_back_place(grid, cell, grad_value)
                    if passage.rate > 0.0:
                        way = (t - passage.entry.depth) * passage.rate
                        share = way * way * (3.0 - 2.0 * way)
                        apart = (passage.exit.start - passage.entry.start) + t * (
                            passage.exit.velocity - passage.entry.velocity
                        )
                        grad_way = 6.0 * way * (1.0 - way) * wp.dot(grad_place, apart)
                        grad_begin -= (1.0 - way) * passage.rate * grad_way
                        grad_end -= way * passage.rate * grad_way
                        exit_pull += share * grad_place
                        exit_pull_t += (share * t) * grad_place
                        grad_place = (1.0 - share) * grad_place
                    pull += grad_place
                    pull_t += t * grad_place
                if light < shell.early_stop:
                    break
        if to_pose == 1:
            moved = pull_back_chart(
                shell,
                image,
                passage.entry,
                direction,
                pull * grid.cells_per_metre,
                pull_t * grid.cells_per_metre,
                grad_begin,
                grad_points,
                grad_inverse,
            )
            grad_origin += moved.origin
            grad_direction += moved.direction
            if passage.rate > 0.0:
                moved = pull_back_chart(
                    shell,
                    image,
                    passage.exit,
                    direction,
                    exit_pull * grid.cells_per_metre,
                    exit_pull_t * grid.cells_per_metre,
                    grad_end,
                    grad_points,
                    grad_inverse,
                )
                grad_origin += moved.origin
                grad_direction += moved.direction
    if to_pose == 1:
        grad_origins[ray] = grad_origin
        grad_directions[ray] = grad_direction + (grad_length * shell.step / norm) * direction
