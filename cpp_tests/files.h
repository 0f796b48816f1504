// Files of the tests: the recordings that ship with eplb, and temporary directories.
#ifndef EPLB_TESTS_FILES_H
#define EPLB_TESTS_FILES_H

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

inline std::string data(const std::string &name) { return std::string(EPLB_DATA) + "/" + name; }

inline std::string read_file(const std::filesystem::path &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const std::filesystem::path &path, const std::string &text) {
    std::ofstream(path, std::ios::binary) << text;
}

/// The partial file of a file in a directory, or an empty path.
inline std::filesystem::path partial_file(const std::filesystem::path &directory, const std::string &name) {
    std::error_code none;
    for (const auto &entry : std::filesystem::directory_iterator(directory, none)) {
        if (entry.path().filename().string().rfind("." + name + ".", 0) == 0 &&
            entry.path().extension() == ".partial") {
            return entry.path();
        }
    }
    return {};
}

/// A new directory, removed with its contents by the destructor.
class temporary_directory {
  public:
    temporary_directory() {
        std::string pattern = (std::filesystem::temp_directory_path() / "eplb-XXXXXX").string();
        path_ = mkdtemp(pattern.data());
    }
    ~temporary_directory() { std::filesystem::remove_all(path_); }
    temporary_directory(const temporary_directory &) = delete;
    temporary_directory &operator=(const temporary_directory &) = delete;

    std::string operator/(const std::string &name) const { return (path_ / name).string(); }

  private:
    std::filesystem::path path_;
};

#endif
