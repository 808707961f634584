from scrimp_platform import node_metrics


def test_what_nvidia_smi_says_has_mlflows_names():
    values = node_metrics.parse_gpu_use("37, 1024, 4096, 120.5, 250.00\n[N/A], 0, 4096, [N/A], 250.00\n")
    assert values == {
        "gpu_0_utilization_percentage": 37,
        "gpu_0_memory_usage_megabytes": 1024 * 2**20 / 1e6,
        "gpu_0_memory_usage_percentage": 25,
        "gpu_0_power_usage_watts": 120.5,
        "gpu_0_power_usage_percentage": 48.2,
        "gpu_1_memory_usage_megabytes": 0,
        "gpu_1_memory_usage_percentage": 0,
    }
    assert node_metrics.parse_gpu_use("NVIDIA-SMI has failed because it couldn't communicate with the driver.\n") == {}


def test_a_node_has_the_metrics_that_mlflow_itself_would_log(tmp_path):
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor

    names = set()
    for monitor in (CPUMonitor(), DiskMonitor()):
        monitor.collect_metrics()
        names |= set(monitor.aggregate_metrics())
    assert names <= set(node_metrics.measure(tmp_path))
