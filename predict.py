from zoo.cli import predict

if __name__ == "__main__":
    predict()
