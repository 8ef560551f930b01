"""Warp kernels that build and fit a field.

One source for CPU and CUDA. Knows nothing of rays and lattices.
"""

# mypy: disable-error-code="no-untyped-def,valid-type,no-any-return,attr-defined,type-var,arg-type"
import warp as wp

from posegen_ray.subjects.vector_kernels import adam_four, smooth_four

wp.set_module_options({"enable_backward": False})


@wp.kernel
def signed_distance(
    mesh: wp.uint64,
    places: wp.array(dtype=wp.vec3),
    farthest: float,
    with_sign: int,  # 1: negative inside; three times the work
    distance: wp.array(dtype=float),  # `farthest` where nothing is nearer
):
    i = wp.tid()
    distance[i] = farthest
    if with_sign == 1:
        query = wp.mesh_query_point_sign_winding_number(mesh, places[i], farthest)
        if query.result:
            nearest = wp.mesh_eval_position(mesh, query.face, query.u, query.v)
            distance[i] = query.sign * wp.length(nearest - places[i])
    else:
        near = wp.mesh_query_point_no_sign(mesh, places[i], farthest)
        if near.result:
            nearest = wp.mesh_eval_position(mesh, near.face, near.u, near.v)
            distance[i] = wp.length(nearest - places[i])


@wp.kernel
def smooth(
    neighbours: wp.array2d(dtype=wp.int32),  # [M, 3] next row along x, y, z; < 0: none
    values: wp.array(dtype=wp.vec4),
    strength: wp.vec4,
    grad_values: wp.array(dtype=wp.vec4),  # added to
):
    smooth_four(neighbours, values, strength, grad_values, wp.tid())


@wp.kernel
def adam(
    values: wp.array(dtype=wp.vec4),
    grad_values: wp.array(dtype=wp.vec4),  # set to zero
    mean: wp.array(dtype=wp.vec4),
    square: wp.array(dtype=wp.vec4),
    rate: wp.vec4,
    mean_unbias: float,
    square_unbias: float,
    lowest: wp.vec4,
    highest: wp.vec4,
):
    adam_four(
        values,
        grad_values,
        mean,
        square,
        rate,
        mean_unbias,
        square_unbias,
        lowest,
        highest,
        wp.tid(),
    )
