# Counts the sequences of some genomes: one task for each, and one for the sum.
version 1.0

workflow count {
    input {
        Array[File] genomes
    }
    scatter (genome in genomes) {
        call sequences { input: genome = genome }
    }
    call total { input: numbers = sequences.number }
    output {
        File sum = total.sum
    }
}

task sequences {
    input {
        File genome
    }
    command <<<
        grep -c '>' ~{genome} > number.txt
    >>>
    output {
        File number = "number.txt"
    }
    runtime {
        docker: "alpine:3.20"
        cpu: 1
        memory: "512 MB"
    }
}

task total {
    input {
        Array[File] numbers
    }
    command <<<
        awk '{sum += $1} END {print sum}' ~{sep=" " numbers} > sum.txt
    >>>
    output {
        File sum = "sum.txt"
    }
    runtime {
        docker: "alpine:3.20"
        cpu: 1
        memory: "512 MB"
    }
}
