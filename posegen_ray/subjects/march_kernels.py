"""Warp kernels that follow rays through the posed lattice: one source for CPU and CUDA.

The renderer's adjoint is written by hand (`march_backward`), because Warp's own differentiation is
wrong for loops of data-dependent length. It does not walk again: where a gradient will be wanted,
`march` writes down what the rays meet. `posegen_ray.subjects.warp_cache` compiles this module.

All geometry is in camera space: rays start at 0, and their directions have z = 1, so that the way
t along a ray is depth. A ray enters the posed lattice through a face of its boundary and walks from
tetrahedron to tetrahedron. Inside one, barycentric coordinates b carry it back to the canonical
pose, where its corners are c_i:

    b(t) = offset + t rate,   canonical(t) = sum_i b_i(t) c_i

with rate_i = gradient_i . direction. Offsets and gradients are worked out once for each tetrahedron
and picture (`lattice_kernels.find_maps`), and so is their adjoint. A ray that comes in at depth d
goes out where the first coordinate falls to zero: the way there is 1 / max_i(-rate_i / b_i(d)).
All four coordinates go through the same vector operations and nothing branches on their signs: on a
CPU a branch that cannot be foreseen costs more than the arithmetic.

A face is named from inside by 4 * tetrahedron + the corner opposite it.

Each crossing of a tetrahedron gets one sample, half-way (about one to a field cell). It moves with
the tetrahedron, so nothing flickers when the body moves past a fixed grid of depths; and a crossing
that shrinks to nothing takes its sample's weight with it, so pictures are continuous in pose and
camera.

Where the posed lattice overlaps itself (an arm before the trunk, crossed legs) a ray has several
walks; they are composited in the order of depth. A tetrahedron that is turned inside out, deep in a
bent elbow or knee, counts as a hole: walks end at it, and others begin behind it.

Knows nothing about torch.
"""

# float(1.0) declares a variable that a loop may change; a bare 1.0 would be a constant to Warp
# ruff: noqa: UP018, RUF046
import warp as wp

from posegen_ray.subjects.lattice_kernels import EMPTY, LAYERS, head_of, is_hole
from posegen_ray.subjects.vector_kernels import (
    copy_four,
    cross_four,
    fetch_four,
    fetch_gradient,
    fetch_map,
    pull_back_cross_four,
    pull_back_shade_four,
    pull_back_values_four,
    shade_four,
)

wp.set_module_options({"enable_backward": False})

LOW_HALF = wp.constant(wp.uint64(2**32 - 1))
FAR = wp.constant(1.0e9)  # metres: a walk that is over
AT_FACE = wp.constant(1.0e-9)  # least coordinate: at the face that a ray has come through
MOST_CROSSINGS = wp.constant(4096)  # of a ray; a bound for degenerate lattices

Faces = wp.types.vector(length=LAYERS, dtype=wp.int32)
Depths = wp.types.vector(length=LAYERS, dtype=wp.float32)


# --- the field's values -------------------------------------------------------------------------


@wp.struct
class Blocks:
    """The field's values, block by block; see `posegen_ray.subjects.field.Field.block_rows`.

    A ray looks up many places in a block of 1 KB before it goes on to the next; in one large grid
    nearly every look-up would miss the processor's cache.
    """

    values: wp.array(dtype=wp.vec4)  # [64 N] red, green, blue, density logit
    rows: wp.array(dtype=wp.int32)  # [64 N] where they come from in the field; -1: nowhere
    density_scale: float  # per metre: density = scale * (sigmoid(logit) - sigmoid(empty))
    empty: float  # logits below it are no density at all


@wp.kernel
def fill_blocks(
    stored: wp.array(dtype=wp.vec4),  # [M + 1] the field's values, and that of absent vertices
    rows: wp.array(dtype=wp.int32),  # [64 N] as in `Blocks`
    values: wp.array(dtype=wp.vec4),  # [64 N] out
):
    copy_four(stored, rows, stored.shape[0] - 1, values, wp.tid())


# --- walking ------------------------------------------------------------------------------------


@wp.struct
class Posed:
    """The posed lattice in every picture of a batch."""

    # four rows for each tetrahedron and picture; columns are its barycentric coordinates, rows what
    # they change by along x, y and z, and their values at the camera
    maps: wp.array(dtype=wp.vec4)  # [4 B T]
    neighbours: wp.array(dtype=wp.int32)  # [4 T] what each face is called from the other side; -1
    corners: wp.array(dtype=wp.vec4)  # [40] of a cube's ten kinds of tetrahedra, in cells
    tets: wp.array(dtype=wp.vec4i)  # [T]
    brightness: wp.array(dtype=float)  # [B V] under the light
    vertices: int  # V
    first_odd: int  # from this tetrahedron on, cubes are odd
    layers: int
    early_stop: float


@wp.struct
class Crossing:
    """A ray's way through one tetrahedron."""

    row: int  # where the tetrahedron's map begins
    block: int  # its cube's values
    enter: int  # corner opposite the face that the ray comes in by
    depth: float  # at which the ray comes in
    way: float  # depth out - depth in
    leave: int  # corner opposite the face that the ray goes out by
    onward: int  # what that face is called on the other side; -1: nothing is there
    place: wp.vec3  # half-way, in cells from the cube's corner
    brightness: float  # there


@wp.struct
class Sample:
    """What a ray has met half-way through a tetrahedron: written by `march`, for its adjoint."""

    crossed: int  # 16 * (image * T + tetrahedron) + 4 * enter + leave, as in `Crossing`
    depth: float
    way: float
    place: wp.vec3
    brightness: float
    light: float  # share of the ray's light that comes here
    before: int  # the ray's sample before this one; -1: none


@wp.func
def kind_of(posed: Posed, tet: int):
    """Where the tetrahedron's corners begin in `Posed.corners`."""
    kind = tet % 5
    if tet >= posed.first_odd:
        kind += 5
    return 4 * kind


@wp.func
def cross_tet(posed: Posed, image: int, face: int, slope: wp.vec2, depth: float):
    """The way in by a face, at `depth`, to the far face."""
    tet = face / 4
    crossing = Crossing()
    crossing.block = tet / 5
    crossing.enter = face % 4
    crossing.row = 4 * (image * posed.tets.shape[0] + tet)
    crossing.depth = depth
    found = cross_four(
        posed.maps,
        crossing.row,
        posed.neighbours,
        posed.corners,
        kind_of(posed, tet),
        posed.tets,
        tet,
        posed.brightness,
        image * posed.vertices,
        slope,
        depth,
        AT_FACE,
    )
    crossing.place = wp.vec3(found[0], found[1], found[2])
    crossing.way = found[3]
    crossing.brightness = found[4]
    crossing.leave = wp.cast(found[5], wp.int32)
    crossing.onward = wp.cast(found[6], wp.int32)
    return crossing


@wp.func
def first_walks(front: wp.array2d(dtype=wp.uint64), pixel: int, layers: int):
    """How many walks there are, the face by which each comes in, and its depth."""
    faces = Faces(-1)
    depths = Depths(FAR)
    count = int(0)
    for layer in range(layers):
        key = front[pixel, layer]
        if key == EMPTY:
            break
        faces[layer] = int(wp.uint32(key & LOW_HALF))
        depths[layer] = wp.cast(wp.uint32(key >> wp.uint64(32)), wp.float32)
        count += 1
    return count, faces, depths


@wp.func
def nearest_walk(depths: Depths, count: int):
    nearest = int(0)
    for walk in range(1, count):
        if depths[walk] < depths[nearest]:
            nearest = walk
    return nearest


@wp.kernel
def march(
    image_of: wp.array(dtype=wp.int32),  # [N] image of each ray
    slopes: wp.array(dtype=wp.vec2),  # [N] x and y of its direction, whose z is 1
    pixel_of: wp.array(dtype=wp.int32),  # [N] the ray's row in `front`
    front: wp.array2d(dtype=wp.uint64),  # [pixels, LAYERS]
    posed: Posed,
    blocks: Blocks,
    rgba: wp.array(dtype=wp.vec4),  # [N] out, premultiplied
    noting: int,  # 1: samples are written down
    samples: wp.array(dtype=Sample),  # out, as many as there is room for
    taken: wp.array(dtype=wp.int32),  # [1] zero; how many samples there are
    last: wp.array(dtype=wp.int32),  # [N] out: the ray's last sample, -1: none
):
    ray = wp.tid()
    image = image_of[ray]
    slope = slopes[ray]
    norm = wp.sqrt(1.0 + wp.dot(slope, slope))
    light = float(1.0)
    colour = wp.vec3(0.0, 0.0, 0.0)
    before = int(-1)
    count, faces, depths = first_walks(front, pixel_of[ray], posed.layers)
    # a crossing is shaded when the next one is known: by then its values have come from memory
    waiting = Crossing()
    going = int(1)
    for _ in range(MOST_CROSSINGS):
        crossing = Crossing()
        if going == 1:
            walk = nearest_walk(depths, count)
            depth = depths[walk]
            onward = int(-1)
            if depth >= FAR:
                going = 0
            else:
                face = faces[walk]
                if not is_hole(posed.maps, 4 * (image * posed.tets.shape[0] + face / 4)):
                    crossing = cross_tet(posed, image, face, slope, depth)
                    fetch_four(blocks.values, crossing.block, crossing.place)
                    onward = crossing.onward
                    depth += crossing.way
            faces[walk] = onward
            depths[walk] = wp.where(onward >= 0, depth, FAR)
        if waiting.way > 0.0:
            value = shade_four(
                blocks.values,
                waiting.block,
                waiting.place,
                blocks.density_scale,
                blocks.empty,
                waiting.way * norm,
            )
            if noting == 1 and value[3] < 1.0:
                slot = wp.atomic_add(taken, 0, 1)
                if slot < samples.shape[0]:
                    sample = Sample()
                    sample.crossed = 4 * waiting.row + 4 * waiting.enter + waiting.leave
                    sample.depth = waiting.depth
                    sample.way = waiting.way
                    sample.place = waiting.place
                    sample.brightness = waiting.brightness
                    sample.light = light
                    sample.before = before
                    samples[slot] = sample
                    before = slot
            colour += (light * (1.0 - value[3]) * waiting.brightness) * head_of(value)
            light = light * value[3]
        waiting = crossing
        if going == 0:
            break
        if light < posed.early_stop:
            going = 0
    rgba[ray] = wp.vec4(colour[0], colour[1], colour[2], 1.0 - light)
    if noting == 1:
        last[ray] = before


@wp.kernel
def march_backward(
    image_of: wp.array(dtype=wp.int32),  # as in `march`
    slopes: wp.array(dtype=wp.vec2),
    posed: Posed,
    blocks: Blocks,
    rgba: wp.array(dtype=wp.vec4),  # what `march` gave
    samples: wp.array(dtype=Sample),
    last: wp.array(dtype=wp.int32),
    grad_rgba: wp.array(dtype=wp.vec4),  # [N]
    to_pose: int,  # 1: add to grad_maps and set grad_slopes
    to_field: int,  # 1: add to grad_values
    grad_maps: wp.array(dtype=wp.vec4),  # [4 B T]
    grad_slopes: wp.array(dtype=wp.vec2),  # [N]
    grad_brightness: wp.array(dtype=float),  # [B V] added to
    grad_values: wp.array(dtype=wp.vec4),  # [M]
):
    ray = wp.tid()
    image = image_of[ray]
    slope = slopes[ray]
    norm = wp.sqrt(1.0 + wp.dot(slope, slope))
    grad = grad_rgba[ray]
    # what the light behind the current sample is worth: colours there, less the final alpha
    behind = -grad[3] * (1.0 - rgba[ray][3])
    grad_norm = float(0.0)
    grad_slope = wp.vec2(0.0, 0.0)
    slot = last[ray]
    while slot >= 0:
        sample = samples[slot]
        tet = sample.crossed / 16 - image * posed.tets.shape[0]
        if sample.before >= 0:
            following = samples[sample.before]
            block = (following.crossed / 16 - image * posed.tets.shape[0]) / 5
            fetch_four(blocks.values, block, following.place)
            fetch_map(posed.maps, following.crossed / 16 * 4, to_pose, grad_maps)
            if to_field == 1:
                fetch_gradient(blocks.values, blocks.rows, grad_values, block, following.place)
        pull = pull_back_shade_four(
            blocks.values,
            tet / 5,
            sample.place,
            blocks.density_scale,
            blocks.empty,
            sample.way * norm,
            sample.brightness,
            sample.light,
            behind,
            grad,
        )
        behind = pull[9]
        grad_norm += pull[3] * sample.way
        grad_slope += pull_back_cross_four(
            posed.maps,
            sample.crossed / 16 * 4,
            posed.corners,
            kind_of(posed, tet),
            posed.tets,
            tet,
            posed.brightness,
            image * posed.vertices,
            slope,
            norm,
            sample.depth,
            sample.way,
            sample.crossed / 4 % 4,
            sample.crossed % 4,
            pull,
            to_pose,
            grad_maps,
            grad_brightness,
        )
        if to_field == 1:
            pull_back_values_four(
                blocks.values,
                blocks.rows,
                grad_values,
                tet / 5,
                sample.place,
                wp.vec4(pull[5], pull[6], pull[7], pull[8]),
            )
        slot = sample.before
    if to_pose == 1:
        grad_slopes[ray] = grad_slope + (grad_norm / norm) * slope
