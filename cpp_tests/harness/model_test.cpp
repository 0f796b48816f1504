// The example's model by itself, against the outputs of another program.
#include "files.h"
#include "golden.h"
#include "model/questions.h"
#include "one_rank.h"

TEST(Model, MatchesTheGoldenExpertsAndLogitsOnOneRank) {
    const one_rank rank(data("tiny-moe"));
    const auto questions = read_questions(data("tiny-moe/gsm8k-test.jsonl"), 256);
    ASSERT_EQ(questions.size(), 1319u);
    golden golden(data("tiny-moe"));
    const safetensors file(data("tiny-moe/golden.safetensors"));
    for (size_t question = 0; question < golden::num_questions; question++) {
        ASSERT_EQ(questions[question],
                  file.i32(std::to_string(question) + ".tokens", {questions[question].size()}));
        batch alone;
        alone.add(questions[question]);
        const auto result = rank.forward(alone);
        golden.compare(question, result.topk_ids, result.logits);
    }
    golden.expect_all_compared();
}

TEST(Model, ResultOfATokenDoesNotDependOnTheBatch) {
    const one_rank rank(data("tiny-moe"));
    const auto questions = read_questions(data("tiny-moe/gsm8k-test.jsonl"), 256);
    batch together;
    for (size_t question = 0; question < 4; question++) {
        together.add(questions[question]);
    }
    const auto all = rank.forward(together);
    for (size_t question = 0; question < 4; question++) {
        batch alone;
        alone.add(questions[question]);
        const auto result = rank.forward(alone);
        const auto first = all.logits.begin() + static_cast<ptrdiff_t>(together.starts[question] * 256);
        EXPECT_TRUE(std::equal(result.logits.begin(), result.logits.end(), first)) << "question " << question;
    }
}

TEST(Model, RejectsABadCheckpointByName) {
    const temporary_directory dir;
    const auto message = [](const std::string &path) -> std::string {
        try {
            safetensors(path).f32("a", {2});
            return "nothing";
        } catch (const std::runtime_error &error) {
            return std::string(error.what()).substr(path.size() + 2);
        }
    };
    const auto of = [&](const std::string &header, size_t data, uint64_t size) {
        const std::string path = dir / "file.safetensors";
        write_file(path, std::string(reinterpret_cast<const char *>(&size), sizeof size) + header +
                             std::string(data, '\0'));
        return message(path);
    };
    const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    EXPECT_EQ(of(good, 8, good.size()), "nothing");
    EXPECT_EQ(of(good, 7, good.size()), "tensor \"a\" is at bytes 0 to 8 of the data, which has 7");
    EXPECT_EQ(of(good, 8, 1000), "has a header of 1000 bytes, at most 62 expected");
    EXPECT_EQ(message(dir / "none"), "No such file or directory");
    const std::string other = R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})";
    EXPECT_EQ(of(other, 12, other.size()), "tensor \"a\" is F32 [3], F32 [2] expected");
}
