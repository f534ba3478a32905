# To be sourced: how a small model runs best on a CPU. JAX gets a device for each core, so that a
# mesh gives every core rows of its own, and memory comes in large pages, since XLA asks for it anew
# at every step. What is already set stays.
export JAX_PLATFORMS=cpu
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
export XLA_FLAGS=${XLA_FLAGS:---xla_force_host_platform_device_count=$(nproc)}
