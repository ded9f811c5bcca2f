"""What an experiment will need and cost, before anything is fetched or submitted; nothing here needs torch.

In the order of the reckoning:

    shapes      the sizes of the model
    data        the number of pairs and their lengths
    work        operations of matrix products
    room        memory
    hardware    how fast and how large a device is
    stages      all of it for each stage
    table       for a person, and as JSON
    requests    what the workflow's rules ask the scheduler for
    retries     what a job asks for that is tried again
"""
