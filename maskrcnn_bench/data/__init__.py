from maskrcnn_bench.data.build import make_data_loader, make_dataset, make_datasets
from maskrcnn_bench.data.check import check_dataset

__all__ = ["check_dataset", "make_data_loader", "make_dataset", "make_datasets"]
