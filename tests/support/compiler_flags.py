"""XLA flags under which test programs are compiled quickly rather than well."""

QUICK = "--xla_backend_optimization_level=0"
QUICK_CPU = f"{QUICK} --xla_cpu_use_fusion_emitters=false"
